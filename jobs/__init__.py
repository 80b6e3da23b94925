"""What each kind of job does: a pure plan and a worker per kind, behind the ports of jobs/protocol.py."""
