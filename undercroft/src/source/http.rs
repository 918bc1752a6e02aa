//! Asking servers: one client with the host's certificates and the environment's proxy, and errors in people's words.

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use ureq::{
    Agent, Body, Proxy, ResponseExt, Timeout,
    http::{Response, Uri},
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

use super::{
    error::{Result, SourceError},
    progress::Cancel,
};

/// How a [`Client`] goes about it.
#[derive(Debug, Clone)]
pub struct Network {
    /// A proxy's address (`http://`, `https://`, `socks5://` …). From the environment by default: `ALL_PROXY`,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, and `NO_PROXY` for what goes without. This machine itself is never asked through it.
    pub proxy: Option<String>,
    /// Time for a name server's answer, and again for the connection with its encryption.
    pub connect: Duration,
    /// Time that a server may say nothing, however long all of it takes.
    pub silence: Duration,
    /// How often a download that was cut, but grew, is taken up again at once.
    pub retries: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self { proxy: None, connect: Duration::from_secs(20), silence: Duration::from_secs(60), retries: 3 }
    }
}

/// Asks servers.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    cancel: Cancel,
    has_certificates: bool,
    pub(super) retries: u32,
}

/// An answer that was read whole.
#[derive(Debug)]
pub(super) struct Small {
    pub(super) status: u16,
    pub(super) response: Response<()>,
    pub(super) bytes: Vec<u8>,
}

impl Client {
    pub(super) fn new(network: &Network, cancel: &Cancel) -> Result<Self> {
        let certificates: Vec<_> = rustls_native_certs::load_native_certs()
            .certs
            .iter()
            .map(|one| Certificate::from_der(one).to_owned())
            .collect();
        let has_certificates = !certificates.is_empty();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::from(certificates))
            .build();
        let proxy = match &network.proxy {
            Some(proxy) => Some(Proxy::new(proxy).map_err(|error| SourceError::Unreachable {
                host: proxy.clone(),
                url: "everything".into(),
                reason: format!("that is no address of a proxy ({error})"),
            })?),
            None => Proxy::try_from_env(),
        };
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .http_status_as_error(false)
            .save_redirect_history(true)
            .user_agent(concat!("undercroft/", env!("CARGO_PKG_VERSION")))
            // A file is wanted as it is, and its digest is of just those bytes.
            .accept_encoding("identity")
            .timeout_resolve(Some(network.connect))
            .timeout_connect(Some(network.connect))
            .timeout_recv_response(Some(network.silence))
            .timeout_per_read(Some(network.silence))
            .timeout_per_write(Some(network.silence))
            .build();
        let agent = Agent::new_with_config(config);
        cancel.ends(&agent);
        Ok(Self { agent, cancel: cancel.clone(), has_certificates, retries: network.retries })
    }

    /// Asks, and follows where the server leads; whatever status it ends with. Credentials go to the first server only.
    pub(super) fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Response<Body>> {
        if self.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let uri: Uri = url.parse().map_err(|_| self.unreachable(url, "that is no address"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(self.unreachable(url, "expected http://HOST/… or https://HOST/…"));
        }
        if uri.scheme_str() == Some("https") && !self.has_certificates {
            return Err(SourceError::NoCertificates { host: host_of(url) });
        }
        let mut request = self.agent.get(&uri);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response =
            if is_loopback(&uri) { request.config().proxy(None).build().call() } else { request.call() };
        let response = response.map_err(|error| self.explain(url, &error))?;
        let path = response.get_redirect_history().unwrap_or_default();
        let down = path
            .windows(2)
            .find(|step| step[0].scheme_str() == Some("https") && step[1].scheme_str() != Some("https"));
        match down {
            Some(step) => Err(SourceError::Downgrade { url: shown(url), to: shown(&step[1].to_string()) }),
            None => Ok(response),
        }
    }

    /// Asks for something small, and reads it whole: at most `limit` bytes, whatever the server says.
    pub(super) fn get_small(
        &self,
        url: &str,
        headers: &[(&str, String)],
        limit: u64,
        what: &str,
    ) -> Result<Small> {
        let (parts, body) = self.get(url, headers)?.into_parts();
        let mut bytes = Vec::new();
        let read = body.into_reader().take(limit + 1).read_to_end(&mut bytes);
        if self.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        read.map_err(|error| self.unreachable(url, &format!("its answer broke off ({})", reason(&error))))?;
        if bytes.len() as u64 > limit {
            return Err(SourceError::TooLarge { what: what.into(), limit });
        }
        let status = parts.status.as_u16();
        Ok(Small { status, response: Response::from_parts(parts, ()), bytes })
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn unreachable(&self, url: &str, reason: &str) -> SourceError {
        SourceError::Unreachable { host: host_of(url), url: shown(url), reason: reason.into() }
    }

    fn explain(&self, url: &str, error: &ureq::Error) -> SourceError {
        if self.cancel.is_cancelled() {
            return SourceError::Cancelled;
        }
        let proxy = match self.agent.config().proxy() {
            Some(proxy) => format!(" (by the proxy {}:{})", proxy.host(), proxy.port()),
            None => String::new(),
        };
        let reason = match error {
            ureq::Error::HostNotFound => {
                format!("no name server knows that name{proxy}; check the spelling and the network")
            }
            ureq::Error::Timeout(Timeout::Resolve) => "the name server did not answer in time".into(),
            ureq::Error::Timeout(Timeout::Connect) => format!("no connection came about in time{proxy}"),
            ureq::Error::Timeout(_) => format!("it did not answer in time{proxy}"),
            ureq::Error::Rustls(error) => format!(
                "its certificate or its encryption was not accepted ({error}); behind a company's proxy, install its \
                 certificate on this machine"
            ),
            ureq::Error::TooManyRedirects => "it leads from one address to the next without end".into(),
            ureq::Error::Io(error) => format!("{}{proxy}", io_reason(error)),
            other => format!("{other}{proxy}"),
        };
        self.unreachable(url, &reason)
    }
}

fn io_reason(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(error), _) => format!(
            "its certificate or its encryption was not accepted ({error}); behind a company's proxy, install its \
             certificate on this machine"
        ),
        (None, io::ErrorKind::ConnectionRefused) => "nobody listens there (connection refused)".into(),
        _ => reason(error),
    }
}

/// What ended a body, in a few words and without the kernel's numbers.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server ended the connection".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            "the connection was reset".into()
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "nothing came for too long".into(),
        _ => match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Timeout(_)) => "nothing came for too long".into(),
            Some(ureq::Error::Io(inner)) => reason(inner),
            _ => error.to_string(),
        },
    }
}

/// Whether it is this machine that is meant.
pub(super) fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn host_of(url: &str) -> String {
    let host = url.parse::<Uri>().ok().and_then(|uri| {
        let authority = uri.authority()?.as_str();
        Some(authority.rsplit('@').next().unwrap_or(authority).to_owned())
    });
    host.unwrap_or_else(|| "the server".into())
}

/// An address as people may see it: without a password.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return crate::console::printable(url) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    crate::console::printable(&format!("{scheme}://{host}{}", &rest[end..]))
}

/// A header's value, if it is there and text.
pub(super) fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}
