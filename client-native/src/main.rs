//! `shoal`: the headless volunteer's command line.

fn main() {}
