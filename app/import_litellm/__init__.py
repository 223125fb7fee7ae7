"""`python -m app import-litellm`: a LiteLLM proxy's configuration and accounts, created here.

`config_file` reads its YAML, `tables` the export of its database; both only make a `Plan` of what to create, in the words of our own admin
API, and notes of what cannot be carried over. `apply` checks each part as the API would, and creates what is not there yet.
"""
