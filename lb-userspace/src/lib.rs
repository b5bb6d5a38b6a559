//! Wattline's user space: the agent that keeps the BPF maps true to what is wanted, and its command line.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod doctor;
pub mod fleet;
pub mod health;
pub mod ring;
