//! Waiting until no packet is in the middle of the program.

use std::time::Duration;

/// Returns once every packet that was being handled at the call has been: `MEMBARRIER_CMD_GLOBAL` is
/// `synchronize_rcu` (`kernel/sched/membarrier.c`), and XDP runs inside an RCU read-side section. Where the kernel
/// refuses it (`nohz_full`), a pause that is thousands of times longer than a packet takes.
pub fn wait() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call without pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
}
