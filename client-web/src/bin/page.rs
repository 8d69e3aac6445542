//! The page's module: what people see. A browser runs it; natively there is nothing to run.

#[cfg(target_arch = "wasm32")]
fn main() {
    client_web::page::app::start();
}

#[cfg(not(target_arch = "wasm32"))]
fn main() {}
