"""How SGLang servers get the trainer's weights while they work.

`way.Way` is the protocol; `disk`, `tensor`, `distributed` and `lora` are ways; `publisher.Publisher` drives one of
them: it prepares while the servers sample, checks names and versions, pauses, commits, resumes, and goes back when it
must. `lora` brings adapters alone, which requests name (`adapters`); nothing is paused for them.
Nothing here imports sglang or torch; `sender.py` runs in SGLang's own environment.
"""
