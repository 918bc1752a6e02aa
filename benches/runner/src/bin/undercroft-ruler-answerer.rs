//! The simplest server there is, for a guest: it sends back what comes first on a connection, and closes it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
};

use undercroft_ruler_runner::ANSWERER;

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ANSWERER))?;
    let mut buffer = [0; 1024];
    loop {
        let (mut stream, _) = listener.accept()?;
        // Who goes away in the middle is not missed.
        if let Ok(length) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..length]);
        }
    }
}
