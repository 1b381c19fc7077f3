"""The HTML of the service: the page to ask at, and that of the API.

It fetches nothing from elsewhere and knows nothing of runs.
"""
