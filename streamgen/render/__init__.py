"""Batch rendering: a file of jobs to a folder of videos, across restarts, crashes, processes and machines.

    job_file   text -> rows            job     row -> RenderJob       items    jobs -> items of work
    folder     what is in the output folder: manifest, claims, names  runner   item -> outcome
    schedule   the loop over items     ray_engine  the same items on a Ray cluster
    page       the run as an HTML page

Nothing here knows the command line; whoever runs items is told by a `RunObserver` what becomes of them.
"""
