//! Programs of the host that connect to the device's unix socket, and say to which port of the guest.

use nix::errno::Errno;

use super::connection::{Connection, Fate, Stage};
use super::multiplexer::{MAX_CONNECTIONS, Multiplexer};
use super::sockets;

/// The longest first line: `CONNECT 4294967295` and its end.
const MAX_GREETING: usize = 19;

impl Multiplexer {
    /// Takes in the programs that have connected.
    pub(super) fn accept(&mut self) {
        self.is_accept_due = false;
        loop {
            let stream = match sockets::accept_now(&self.listener) {
                Ok(stream) => stream,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(_) => {
                    // No file descriptors. There will be no other event for those that wait.
                    self.is_accept_due = !self.connections.is_empty();
                    return;
                }
            };
            if self.connections.len() >= MAX_CONNECTIONS {
                continue;
            }
            let token = self.insert(Connection::new(stream, Stage::Greeting, 0, 0));
            self.greet(token);
        }
    }

    /// Reads a program's first line, and asks the guest when it is complete.
    pub(super) fn greet(&mut self, token: u32) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        loop {
            let mut byte = [0];
            match connection.stream.receive_now(&mut byte) {
                // Byte by byte: what follows the line is the guest's.
                Ok(1) if byte[0] != b'\n' && connection.greeting.len() < MAX_GREETING => {
                    connection.greeting.push(byte[0]);
                }
                Ok(1) if byte[0] == b'\n' => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                _ => return self.remove(token),
            }
        }
        let port = std::str::from_utf8(&connection.greeting)
            .ok()
            .and_then(|line| line.trim_end_matches('\r').strip_prefix("CONNECT "))
            .and_then(|port| port.parse::<u32>().ok());
        let Some(guest_port) = port else { return self.remove(token) };
        let host_port = self.free_port(guest_port);
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.greeting = Vec::new();
        connection.guest_port = guest_port;
        connection.host_port = host_port;
        connection.stage = Stage::Requested;
        connection.due.request = true;
        self.by_ports.insert((guest_port, host_port), token);
        self.settle(token, Fate::Live);
    }
}
