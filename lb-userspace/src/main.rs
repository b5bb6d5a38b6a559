//! The `wattline` binary.
fn main() {}
