"""Ctrl-C waits for the end of what must not be torn apart, whichever thread the signal reaches."""

from __future__ import annotations

import os
import signal
import threading
import time
import unittest

from moe_weights.commands.held_interrupts import held_interrupts


def interrupt_this_process() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(50):  # time to handle it, were it handled now
        time.sleep(0.001)


class HeldInterrupts(unittest.TestCase):
    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Another thread takes the signal that this one blocks.
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(done.set)

    def test_are_heard_at_the_end(self) -> None:
        steps = []
        with self.assertRaises(KeyboardInterrupt), held_interrupts():
            interrupt_this_process()
            steps.append("whole")
        self.assertEqual(steps, ["whole"])
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)
        self.assertNotIn(signal.SIGINT, signal.pthread_sigmask(signal.SIG_BLOCK, set()))

    def test_leave_everything_as_it_was_without_one(self) -> None:
        with held_interrupts():
            pass
        with self.assertRaises(KeyboardInterrupt):
            interrupt_this_process()

    def test_stay_ignored_where_they_are_ignored(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with held_interrupts():
            interrupt_this_process()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

    def test_may_be_held_by_another_thread(self) -> None:
        failed: list[BaseException] = []

        def hold() -> None:
            try:
                with held_interrupts():
                    pass
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
        self.assertEqual(failed, [])


if __name__ == "__main__":
    unittest.main()
