//! Serves a model over HTTP from a program: the page at `/`, the API at `/docs`. It ends with SIGTERM or Ctrl-C.
//!
//! ```sh
//! cargo run --release --example serve
//! ```

use std::net::{Ipv4Addr, SocketAddr};

use engine::prelude::*;
use engine::serve::{Limits, Settings, run};

/// Serves the model that comes with the engine on `port`; port 0 chooses a free one. The address is printed.
pub fn serve(port: u16) -> Result<()> {
    let settings = Settings {
        limits: Limits { images: 16, queue: 8, ..Limits::default() },
        ..Settings::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "unet-fashion-small")
    };
    run(settings, |message| println!("{message}"))
}

fn main() -> Result<()> {
    serve(7860)
}
