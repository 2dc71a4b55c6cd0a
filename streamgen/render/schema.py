"""The published form of a job: JSON Schema (draft 2020-12) of one row of a job file."""

from typing import Any

from .job import MAX_FRAMES, MAX_SAMPLES, MAX_SEED
from .shots import (
    CACHE_ACTIONS,
    MAX_BLEND,
    MAX_GESTURES,
    MAX_NAME,
    MAX_OVER_CHUNKS,
    MAX_OVER_SECONDS,
    MAX_PROMPT,
    MAX_SECONDS,
    MAX_WEIGHT,
    PICTURE_USES,
    WAYS,
)

_PROMPT = {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT, "description": "What to show."}
_MOTION = {
    "description": "A motion file, or the object in one: drags, paths, pins, camera, tracks, arrays, clip.",
    "type": ["string", "object"],
}
_CACHE = {
    "enum": list(CACHE_ACTIONS),
    "description": "What becomes of the past, with a new prompt or without: keep the looks and follow the "
    "words (recache, the default of a new prompt), leave it as it is (keep), or forget it (clear).",
}
_GESTURES = {
    "description": "Named motions to add, or to move where the name is in force; null lets go of one.",
    "type": "object",
    "minProperties": 1,
    "maxProperties": MAX_GESTURES,
    "propertyNames": {"minLength": 1, "maxLength": MAX_NAME},
    "additionalProperties": {"anyOf": [_MOTION, {"type": "null"}]},
}
_WEIGHT = {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT}
_BLEND = {
    "description": "Prompts with weights in place of one prompt: the weighted mean of their embeddings.",
    "anyOf": [
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_BLEND,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["prompt"],
                "properties": {"prompt": _PROMPT, "weight": {**_WEIGHT, "default": 1}},
            },
        },
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": MAX_BLEND,
            "additionalProperties": _WEIGHT,
        },
    ],
}
_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_OVER_SECONDS}
_COUNT = {"type": "integer", "minimum": 1, "maximum": MAX_OVER_CHUNKS}
_OVER = {
    "description": "How long the new words take to come: seconds, or an object.",
    "anyOf": [
        _SECONDS,
        {
            "type": "object",
            "additionalProperties": False,
            "oneOf": [{"required": ["seconds"]}, {"required": ["chunks"]}],
            "properties": {
                "seconds": _SECONDS,
                "chunks": _COUNT,
                "way": {"enum": list(WAYS), "default": WAYS[0]},
                "every": {**_COUNT, "default": 1, "description": "Recache with every so many-th chunk."},
            },
        },
    ],
}
_CHANGES: dict[str, Any] = {
    "prompt": _PROMPT,
    "blend": _BLEND,
    "over": _OVER,
    "motion": _MOTION,
    "gestures": _GESTURES,
    "cache": _CACHE,
    "policy": {**_CACHE, "description": "Another name of cache."},
    "strength": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "How much of the live input is made anew.",
    },
    "mask": {
        "description": "Where it is: a picture or .npy file, or a box [left, top, right, bottom].",
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["box"],
                "properties": {
                    "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
                },
            },
        ],
    },
    "picture": {
        "description": "A picture that begins a scene of its own, or a reference in the sink's place.",
        "anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["file"],
                "properties": {
                    "file": {"type": "string"},
                    "use": {"enum": list(PICTURE_USES), "default": PICTURE_USES[0]},
                },
            },
        ],
    },
}
_SHOT = {
    "type": "object",
    "additionalProperties": False,
    "anyOf": [{"required": [name]} for name in _CHANGES],
    "properties": {
        "at": {
            "type": "number",
            "minimum": 0,
            "description": "Seconds from the start; the first shot is at 0 and may leave it out.",
        },
        **_CHANGES,
    },
}


def job_schema() -> dict[str, Any]:
    """JSON Schema of a job: a prompt alone, or an object."""
    properties: dict[str, Any] = {
        "id": {"type": ["string", "integer"], "description": "A name, distinct in its file."},
        "seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS, "default": 8},
        "frames": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_FRAMES,
            "description": "Length in frames, instead of seconds.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_SEED,
            "description": "By default --seed plus the job's place in the file, from 0.",
        },
        "samples": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_SAMPLES,
            "default": 1,
            "description": "How many videos: with seed, seed + 1, ...",
        },
        "size": {
            "description": "Width and height; checked against the model.",
            "anyOf": [
                {"type": "string", "pattern": r"^\s*\d{1,5}\s*[x×*]\s*\d{1,5}\s*$"},
                {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
            ],
        },
        "image": {"type": "string", "description": "A picture to start from."},
        "video": {"type": "string", "description": "A clip to start from."},
        "input": {
            "type": "string",
            "description": "A clip as live input; without seconds and frames the job is as long.",
        },
        "set": {"type": "object", "description": "Settings by name, see `streamgen inspect MODEL`."},
        **_CHANGES,
        "shots": {"type": "array", "minItems": 1, "items": _SHOT},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streamgen render job",
        "description": "One row of a .jsonl file, one document or list entry of a .yaml file. File names are "
        "relative to the job file.",
        "anyOf": [
            _PROMPT,
            {
                "type": "object",
                "additionalProperties": False,
                "anyOf": [{"required": [name]} for name in ("prompt", "blend", "shots")],
                "not": {
                    "anyOf": [{"required": ["seconds", "frames"]}, {"required": ["image", "video"]}],
                },
                "properties": properties,
            },
        ],
    }
