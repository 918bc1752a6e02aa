//! A web server on loopback that does as a test says: one answer a request, then the connection ends.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// The first byte of `Range: bytes=N-`.
    pub(crate) fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The length that is claimed; that of the body if this is `None`, none at all if it is zero.
    pub(crate) claim: Option<u64>,
    /// After the body, bytes without end.
    pub(crate) endless: bool,
    /// After the body, nothing, and the connection stays open.
    pub(crate) silent: bool,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The whole body is claimed, and this many bytes of it are sent.
    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.claim = Some(self.body.len() as u64);
        self.body.truncate(after);
        self
    }

    /// A file, or the part of it that is asked for, as RFC 9110 has it.
    pub(crate) fn file(request: &Request, content: &[u8], tag: &str) -> Self {
        let same = request.header("if-range").is_none_or(|wanted| wanted == tag);
        match request.range().filter(|_| same) {
            Some(start) if start < content.len() => {
                let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
                Self { status: 206, ..Self::ok(&content[start..]) }.with("content-range", range)
            }
            Some(_) => Self::status(416).with("content-range", format!("bytes */{}", content.len())),
            None => Self::ok(content),
        }
        .with("etag", tag)
    }
}

/// A server; its thread goes on until the process ends.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || drop(serve(stream.unwrap(), &seen, &*answer)));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Answer,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut next = || -> std::io::Result<(String, Request)> {
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let mut headers = Vec::new();
        for line in lines.by_ref() {
            match line?.split_once(": ") {
                Some((name, value)) => headers.push((name.into(), value.into())),
                None => break,
            }
        }
        let (method, rest) = first.split_once(' ').unwrap_or_default();
        let target = rest.split(' ').next().unwrap_or_default().to_owned();
        Ok((method.into(), Request { target, headers }))
    };
    let (method, mut request) = next()?;
    seen.lock().unwrap().push(request.clone());
    if method == "CONNECT" {
        // A proxy: it is the far server too.
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        request = next()?.1;
    }
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} Answer\r\nconnection: close\r\n", answer.status);
    if answer.claim != Some(0) {
        head += &format!("content-length: {}\r\n", answer.claim.unwrap_or(answer.body.len() as u64));
    }
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(&answer.body)?;
    if answer.endless {
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    }
    if answer.silent {
        // Until the other side gives up.
        std::io::copy(&mut stream, &mut std::io::sink())?;
    }
    Ok(())
}
