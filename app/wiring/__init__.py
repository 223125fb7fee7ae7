"""How a process is put together, part by part; `app/main.py` joins the parts, nobody else."""
