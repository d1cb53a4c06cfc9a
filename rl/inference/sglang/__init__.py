"""SGLang samples: its servers run as processes of their own, in a Python environment of their own (`make sglang`).

`command` says how a server is started, `watch` is the process above it, `server` starts one and waits for it, `fleet`
keeps several of them going, `router` stands in front of them. Nothing here imports sglang or torch.
"""
