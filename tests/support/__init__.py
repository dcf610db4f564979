"""What the tests share: real servers, waiting for a condition, and checks that nothing is left behind."""

from tests.support.processes import descendants, gone, stray_processes
from tests.support.servers import RealServer, server_kinds
from tests.support.services import Service, free_port
from tests.support.waiting import wait_until

__all__ = ["RealServer", "Service", "descendants", "free_port", "gone", "server_kinds", "stray_processes", "wait_until"]
