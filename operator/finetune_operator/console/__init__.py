"""`finetune console`: jobs, versions and endpoints as web pages, read-only unless it is told otherwise.

`views` says what a page shows, `reading` gets it, `sessions` knows who looks, `application` is the HTTP around them.
"""
