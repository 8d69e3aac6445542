//! The worker's module: the volunteer itself. A browser runs it; natively there is nothing to run.

#[cfg(target_arch = "wasm32")]
fn main() {
    client_web::constructors::run();
    client_web::worker::start();
}

#[cfg(not(target_arch = "wasm32"))]
fn main() {}
