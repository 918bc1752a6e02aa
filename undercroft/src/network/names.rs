//! What names mean in the VM: what the host's resolv.conf says, kept as it is there, and the names of the distributions.

use std::{
    net::IpAddr,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use undercroft_protocol::{
    command::Command,
    network::{Host, Names},
};

use super::{
    HOST_NAME, NameOptions, NameServers,
    lookup::{self, Lookup},
    resolver::{self, Resolver},
};
use crate::{
    error::Result,
    guest::{Guest, spawn},
};

/// Whom the distributions ask.
pub(super) struct Servers {
    /// Names that none of them is asked for.
    hosts: Arc<Mutex<Vec<Host>>>,
    resolv_conf: PathBuf,
    /// Running, they ask it alone.
    lookup: Option<Lookup>,
    forwarder: Option<IpAddr>,
}

impl Servers {
    /// As it is wanted; where the guest cannot have a name server of its own, a warning, and the host's by the network.
    pub(super) fn start(guest: &Arc<Guest>, options: &NameOptions, forwarder: Option<IpAddr>) -> Self {
        let hosts = Arc::<Mutex<Vec<Host>>>::default();
        let lookup = (options.servers == NameServers::Host)
            .then(|| Lookup::start(guest, &options.resolv_conf, hosts.clone()))
            .and_then(|started| {
                let warn =
                    |error| guest.board.warn(format!("names are not looked up by the host itself: {error}"));
                started.map_err(warn).ok()
            });
        let forwarder = forwarder.filter(|_| options.servers != NameServers::Named);
        Self { hosts, resolv_conf: options.resolv_conf.clone(), lookup, forwarder }
    }

    fn addresses(&self, resolver: &Resolver, ipv6: bool) -> Vec<IpAddr> {
        match (&self.lookup, self.forwarder) {
            (Some(_), _) => vec![lookup::ADDRESS.into()],
            (None, Some(forwarder)) => resolver.nameservers_for_guest(forwarder, ipv6),
            (None, None) => resolver.nameservers.clone(),
        }
    }
}

/// Keeps the guest's names to what the host's are.
pub(super) struct NameKeeper {
    told: Arc<Told>,
    /// Its closing ends the thread.
    end: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

struct Told {
    guest: Arc<Guest>,
    servers: Servers,
    ipv6: bool,
    last: Mutex<Names>,
}

impl Told {
    /// Tells the guest, if there is something else to tell.
    fn tell(&self) -> Result<()> {
        let resolver = Resolver::read(&self.servers.resolv_conf);
        let nameservers = self.servers.addresses(&resolver, self.ipv6);
        let hosts = self.servers.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let names = Names { nameservers, search: resolver.search, options: resolver.options, hosts };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != names {
            let command = Command::Names(names.clone());
            self.guest.ask_nothing("take names", command, self.guest.limit(10))?;
            *last = names;
        }
        Ok(())
    }
}

impl NameKeeper {
    pub(super) fn start(
        guest: &Arc<Guest>,
        servers: Servers,
        ipv6: bool,
        host: Option<IpAddr>,
    ) -> Result<Self> {
        let host = host.map(|address| Host { address, name: HOST_NAME.into() });
        servers.hosts.lock().unwrap_or_else(PoisonError::into_inner).extend(host);
        let told = Arc::new(Told { guest: guest.clone(), servers, ipv6, last: Mutex::default() });
        told.tell()?;
        let pair = UnixStream::pair();
        let (end, watched) =
            pair.map_err(|source| crate::Error::System { what: "make a pair of sockets", source })?;
        let teller = told.clone();
        let thread = spawn("names", move || {
            // A guest that is gone is told of elsewhere; a host that cannot be watched is as it was.
            let _ = resolver::watch(&teller.servers.resolv_conf, &watched, || drop(teller.tell()));
        })?;
        Ok(Self { told, end: Some(end), thread: Some(thread) })
    }

    /// All distributions share the VM's loopback, but those with an address of their own.
    pub(super) fn add(&self, name: &str, own: Option<IpAddr>) -> Result<()> {
        let address = own.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
        let mut hosts = self.told.servers.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        match hosts.iter_mut().find(|host| host.name == name) {
            Some(known) if known.address == address => return Ok(()),
            Some(known) => known.address = address,
            None => hosts.push(Host { address, name: name.into() }),
        }
        drop(hosts);
        self.told.tell()
    }
}

impl Drop for NameKeeper {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}
