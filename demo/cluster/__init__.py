"""More than one machine: sessions live in workers, which Ray places and starts again; fronts hold no model.

A worker is the server of one machine without its page; what it says to a page and hears from it is what
`docs/demo.md` describes. A front serves the page and passes everything else on, so whatever the one-machine
server learns works here, too. Which worker has a session stands in the session's id, so any front finds it.
"""
