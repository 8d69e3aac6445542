//! The page's module: what people see. A browser runs it; natively there is nothing to run.

fn main() {}
