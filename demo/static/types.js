// What modules hand each other, for the type checker; docs/demo.md says what the server's messages mean.

/**
 * @typedef {"loading" | "ready" | "opening" | "playing" | "paused" | "failed" | "queue" | "lost" | "retry"} State
 * @typedef {{ x: number, y: number }} Point
 * @typedef {Point & { grid: number[] | null }} Pin
 *
 * @typedef {object} Options what the page knows before it is connected
 * @property {string[]} examples
 * @property {Record<string, any>} settings
 * @property {number} limit
 * @property {string[]} words of a model that reads them alone
 * @property {Record<string, string[]>} kinds words by kind
 * @property {string} draws what the model draws, in one line
 *
 * @typedef {object} Hello
 * @property {string} model
 * @property {string} device
 * @property {number} width
 * @property {number} height
 * @property {number} fps
 * @property {number} chunk_frames
 * @property {Record<string, any>} settings
 * @property {string[]} words of a model that reads them alone; none of one that reads any text
 * @property {boolean} tracks
 * @property {Record<string, number>} loras strengths of LoRAs that may change
 * @property {number} upload_bytes
 *
 * @typedef {{ id: number, frame: number, picture: string }} Mark
 * @typedef {{ id: number, frame: number, picture: string, prompt: string, seed: number }} Take
 * @typedef {{ frame: number, kind: string, label: string, superseded: string[], id?: number }} Row
 *
 * @typedef {object} HeldRow a gesture that is in force or asked for
 * @property {number} number what the page calls it
 * @property {string} kind
 * @property {number} id of the message that asked for it
 * @property {string} label
 * @property {string} name of a box
 * @property {number[][]} knots rows of frames since its start, and x, y or left, top, right, bottom
 * @property {number[] | null} grid
 * @property {number | null} start null: with the next chunk
 * @property {number | null} end null: when it is let go of
 *
 * @typedef {object} Place
 * @property {number} epoch
 * @property {number} frame
 * @property {string} picture
 * @property {string} prompt
 * @property {string[]} unknown
 * @property {number} dropped
 * @property {Record<string, any>} settings
 * @property {number} seed
 * @property {number[][]} pins
 * @property {HeldRow[]} held
 * @property {Mark[]} marks
 * @property {Take[]} takes
 * @property {Row[]} strip
 * @property {string} no_rewind why there are no marks, "" where there are
 *
 * @typedef {object} Receipt
 * @property {number} id
 * @property {string} kind
 * @property {"accepted" | "applied" | "refused" | "withdrawn"} status
 * @property {number} epoch
 * @property {number} frame
 * @property {string} label
 * @property {string[]} superseded
 * @property {string} [reason]
 * @property {string[]} [unknown]
 * @property {number} [dropped]
 * @property {string} [note]
 * @property {number | null} [until]
 * @property {string} [waiting]
 * @property {Record<string, number | string>} [settings] of a change that was planned
 *
 * @typedef {{ state: State, text: string, epoch: number }} StateMessage
 * @typedef {{ epoch: number, start: number, end: number, rate: number, gen_ms: number }} Chunk
 * @typedef {Mark & { gone: number[] }} NewMark
 *
 * @typedef {object} Stats
 * @property {number} generation_ms
 * @property {number} round_trip_ms
 * @property {number} skipped
 * @property {[number, number]} cache
 * @property {number} buffered
 * @property {number} recorded
 * @property {boolean} recording_full
 * @property {number} watchers
 *
 * @typedef {object} Frame
 * @property {number} encoding
 * @property {number} seq
 * @property {number} epoch
 * @property {number} frame
 * @property {number} chunk
 * @property {number} made
 * @property {Uint8Array<ArrayBuffer> | null} picture
 *
 * @typedef {Frame & { bitmap: ImageBitmap }} Decoded
 *
 * @typedef {object} Heard what a chunk shows of a camera
 * @property {number[]} frames first and last
 * @property {number} held
 * @property {number} dropped
 * @property {string | null} over
 * @property {number | null} taken when the page took the first of them, in seconds of its clock
 * @property {number | null} delay_ms
 *
 * @typedef {object} Told
 * @property {Hello} hello
 * @property {Place} place
 * @property {StateMessage} state
 * @property {Chunk} chunk
 * @property {Receipt} receipt
 * @property {NewMark} mark
 * @property {{ held: HeldRow[] }} held
 * @property {{ id: number, label: string }} relabelled
 * @property {Stats} stats
 * @property {Heard} heard
 * @property {{ text: string, share: number | null }} loading
 * @property {{ position: number, waiting: number }} queue
 * @property {{ seconds: number | null }} idle
 * @property {{ code: string, text: string }} error
 * @property {{ text: string }} ended
 * @property {{ frame: number }} reopened
 * @property {{ text: string }} moved
 * @property {{ here: boolean }} host
 * @property {Frame} frame
 * @property {Decoded} shown
 * @property {{ text: string }} retry
 * @property {{ text: string }} lost
 * @property {boolean} online
 * @property {State} turned
 * @property {{ kept: boolean }} gone
 *
 * @typedef {object} Parts
 * @property {HTMLElement} lightText
 * @property {HTMLElement} model
 * @property {HTMLElement} notice
 * @property {HTMLElement} noticeText
 * @property {HTMLButtonElement} noticeDo
 * @property {HTMLElement} spoken
 * @property {HTMLElement} screen
 * @property {HTMLCanvasElement} video
 * @property {HTMLCanvasElement} paint
 * @property {HTMLElement} cover
 * @property {HTMLButtonElement} startButton
 * @property {HTMLElement} coverText
 * @property {HTMLElement} draws
 * @property {HTMLElement} opening
 * @property {HTMLCanvasElement} loop
 * @property {HTMLCanvasElement} loopPaint
 * @property {HTMLElement} loopWords
 * @property {HTMLButtonElement} loopHold
 * @property {HTMLElement} chip
 * @property {HTMLButtonElement} play
 * @property {HTMLInputElement} seed
 * @property {HTMLElement} marks
 * @property {HTMLElement} events
 * @property {HTMLInputElement} scrub
 * @property {HTMLElement} legend
 * @property {HTMLElement} preview
 * @property {HTMLImageElement} previewPicture
 * @property {HTMLButtonElement} rewind
 * @property {HTMLElement} log
 * @property {HTMLElement} takes
 * @property {HTMLElement} takesText
 * @property {HTMLFormElement} promptForm
 * @property {HTMLElement} now
 * @property {HTMLElement} appeared
 * @property {HTMLElement} mirror
 * @property {HTMLElement} unknown
 * @property {HTMLElement} chips
 * @property {HTMLElement} exampleBox
 * @property {HTMLTextAreaElement} prompt
 * @property {HTMLInputElement} hold
 * @property {HTMLElement} words
 * @property {HTMLElement} queue
 * @property {HTMLElement} examples
 * @property {HTMLInputElement} over
 * @property {HTMLSelectElement} way
 * @property {HTMLDetailsElement} blend
 * @property {HTMLElement} blendRows
 * @property {HTMLButtonElement} blendAdd
 * @property {HTMLButtonElement} blendApply
 * @property {HTMLElement} blendHint
 * @property {HTMLElement} motion
 * @property {HTMLElement} tools
 * @property {HTMLElement} hint
 * @property {HTMLInputElement} gridSize
 * @property {HTMLInputElement} gridSpacing
 * @property {HTMLSelectElement} shape
 * @property {HTMLInputElement} boxName
 * @property {HTMLInputElement} boxSeconds
 * @property {HTMLElement} held
 * @property {HTMLInputElement} file
 * @property {HTMLImageElement} picture
 * @property {HTMLButtonElement} forget
 * @property {HTMLElement} fileHint
 * @property {HTMLDetailsElement} pictureBox
 * @property {HTMLButtonElement} webcam
 * @property {HTMLElement} webcamText
 * @property {HTMLInputElement} strength
 * @property {HTMLElement} strengthValue
 * @property {HTMLInputElement} inputPrompt
 * @property {HTMLElement} inputUnknown
 * @property {HTMLElement} sliders
 * @property {HTMLSelectElement} cache
 * @property {HTMLSelectElement} sink
 * @property {HTMLInputElement} pixelated
 * @property {HTMLElement} status
 * @property {HTMLDialogElement} share
 * @property {HTMLInputElement} shareLink
 * @property {HTMLElement} shareText
 * @property {HTMLElement} watchers
 * @property {HTMLSelectElement} format
 * @property {HTMLSelectElement} scale
 * @property {HTMLButtonElement} full
 * @property {HTMLInputElement} timelineFile
 * @property {HTMLDetailsElement} lane
 * @property {HTMLElement} laneBlocks
 * @property {HTMLElement} lanePlayhead
 * @property {HTMLInputElement} laneWords
 * @property {HTMLElement} camera
 * @property {HTMLElement} presets
 * @property {HTMLSelectElement} laneKind
 * @property {HTMLSelectElement} laneSetting
 * @property {HTMLInputElement} laneValue
 * @property {HTMLInputElement} laneAt
 * @property {HTMLInputElement} laneLong
 * @property {HTMLElement} laneText
 * @property {HTMLButtonElement} laneUndo
 * @property {HTMLButtonElement} lanePlay
 * @property {HTMLDialogElement} compare
 * @property {HTMLVideoElement} videoA
 * @property {HTMLVideoElement} videoB
 * @property {HTMLElement} namesA
 * @property {HTMLElement} namesB
 * @property {HTMLInputElement} compareAt
 * @property {HTMLElement} compareTime
 * @property {HTMLElement} compareText
 * @property {HTMLButtonElement} comparePlay
 */

export {};
