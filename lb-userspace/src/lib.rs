//! Wattline's user space: the agent that keeps the BPF maps true to what is wanted, and its command line.

pub mod dataplane;
pub mod health;
