"""The engine as a server: SGLang's native routes and OpenAI's.

`make_app` makes the application, `lifecycle.Server` lets it listen. Requests go `validation` -> `sampling` -> `service`
(the engine) -> an answer, or a stream of `sse`.
"""
