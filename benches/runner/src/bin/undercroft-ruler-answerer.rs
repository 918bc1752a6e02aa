//! The simplest server there is, for a guest: it sends back what comes first on a connection, and closes it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
};

/// Where it listens; the scenario's `traffic` connects there.
const PORT: u16 = 7007;

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let mut buffer = [0; 1024];
    loop {
        let (mut stream, _) = listener.accept()?;
        // Who goes away in the middle is not missed.
        if let Ok(length) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..length]);
        }
    }
}
