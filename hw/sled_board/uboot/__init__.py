"""U-Boot on a serial console, without I/O: what is said, what is expected, and what it means when something else comes.

A *dialogue* (`dialogue`) is one exchange: reaching the prompt (`prompt`), a command and its status (`command`), a file
by YMODEM (`load`, `ymodem`). `answers` reads what the commands print.
"""
