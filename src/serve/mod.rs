//! The HTTP API: PGHoard's paths, for PostgreSQL's commands and for operators, and ways to restore
//! with nothing but curl.
//!
//! One thread with a smol executor accepts and parses; what touches a store or a disk runs on
//! blocking threads. Limits come first: connections, header and body sizes, deadlines. Nothing is
//! served beyond loopback without authentication unless the configuration says so; with a
//! certificate the API speaks TLS and nothing else.
//!
//! - [`connection`]: how many connections, and for how long.
//! - [`access`]: who asks, and what he may.
//! - [`answer`]: bodies, from a request to its answer.
//! - [`routes`]: which path means what, from one table, and the answers that need no WAL.
//! - [`appliance`]: power and updates, where the machine is one.
//! - [`monitor`]: files and the log, for who watches.
//! - [`operator`]: what people did, and alerts that they took note of.
//! - [`fetch`]: WAL and history files for a recovering server.
//! - [`archive`]: WAL and history files from one that archives.
//! - [`handout`]: a basebackup as a tar, and the script that fetches WAL for it.
//!
//! Budget: 512 connections of 16 KiB each, and as much again for TLS; 64 blocking threads at most,
//! and one a tar.

mod access;
mod answer;
mod appliance;
pub mod archive;
mod connection;
mod fetch;
mod handout;
mod monitor;
pub mod operator;
pub mod routes;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, fmt, thread};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_rustls::TlsAcceptor;
use machine::Class;
use smol::Async;
use smol::channel::Sender;
use smol::lock::Semaphore;

use crate::config::{Anonymous, Config, Credentials};
use crate::failure::{Failure, Outcome};
use crate::journal::run::Report;
use crate::publish::metrics::send::Exposition;
use crate::tls;
pub use fetch::{ABSENT_HEADER, BODY_HEADER, CLUSTER_HEADER};
use handout::tokens::digest;

/// What the API needs of the daemon.
#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    /// The state document as it was last written.
    pub document: Arc<Mutex<Arc<str>>>,
    /// The metrics as they were last looked at.
    pub metrics: Exposition,
    /// To the loop.
    pub reports: SyncSender<Report>,
    pub desk: Arc<archive::Desk>,
    pub around: Around,
}

/// What the environment tells of the machine around; on the appliance, whoever starts the daemon.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Folder of `pghoard.log` and the older ones.
    pub logs: Option<PathBuf>,
    /// Socket of process 1.
    pub control: Option<PathBuf>,
    /// Folder of updates on their way in.
    pub updates: Option<PathBuf>,
}

impl Around {
    pub fn from_environment() -> Around {
        let path = |name| env::var_os(name).map(PathBuf::from);
        Around {
            logs: path("PGHOARD_LOG_DIR"),
            control: path("PGHOARD_CONTROL"),
            updates: path("PGHOARD_UPDATES"),
        }
    }
}

impl Context {
    /// The state document.
    fn text(&self) -> Arc<str> {
        let document = self.document.lock();
        Arc::clone(&document.unwrap_or_else(PoisonError::into_inner))
    }
}

/// The running API; it ends when this is dropped.
pub struct Handle {
    address: SocketAddr,
    current: Arc<Current>,
    stop: Sender<Infallible>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What requests are to be answered by under another configuration, where it listens now.
    pub fn under(&self, config: &Arc<Config>) -> Outcome<Arc<Server>> {
        guarded(config, &[self.address])?;
        let now = self.current.server();
        let mut routes = now.routes.clone();
        routes.context.config = Arc::clone(config);
        Ok(Arc::new(Server::new(routes, Arc::clone(&now.work))?))
    }

    /// Requests from now on are answered by this; those that run end by theirs.
    pub fn adopt(&self, server: Arc<Server>) {
        *self.current.lock() = server;
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.address)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.close();
        if let Some(thread) = self.thread.take() {
            // A panic on that thread was printed when it happened.
            let _ended = thread.join();
        }
    }
}

/// Listens where the configuration says; refusing to is an error now, not later.
pub fn start(context: Context) -> Outcome<Handle> {
    let config = &context.config;
    let listener = bind(config)?;
    let told = |e: std::io::Error| Failure::io(&e, "HTTP server");
    let address = listener.local_addr().map_err(told)?;
    let listener = Async::new(listener).map_err(told)?;
    let work = Arc::new(Semaphore::new(connection::WORK_MAX));
    let server = Server::new(routes::Routes::new(context), work)?;
    let current = Arc::new(Current(Mutex::new(Arc::new(server))));
    let (stop, stopped) = smol::channel::bounded(1);
    let serving = Arc::clone(&current);
    let run = move || smol::block_on(connection::accept(&listener, &serving, &stopped));
    let thread = thread::Builder::new().name("http".into()).spawn(run);
    Ok(Handle {
        address,
        current,
        stop,
        thread: Some(thread.map_err(told)?),
    })
}

fn bind(config: &Config) -> Outcome<TcpListener> {
    let (host, port) = (config.http_address.as_str(), config.http_port);
    let addresses = addresses(config)?;
    if open(&addresses) && config.http_tls.is_none() {
        log::warn!(
            "http_address '{host}': passwords and WAL travel readable for the network; \
             http_tls_certificate and http_tls_key keep it out"
        );
    }
    TcpListener::bind(&*addresses)
        .map_err(|e| Failure::io(&e, format!("cannot listen on {host}:{port} (http_address)")))
}

/// Whether other machines reach it.
fn open(addresses: &[SocketAddr]) -> bool {
    let here = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    !addresses.iter().all(here)
}

/// Where to listen, unless strangers could come in.
pub fn addresses(config: &Config) -> Outcome<Vec<SocketAddr>> {
    let host = config.http_address.as_str();
    let addresses = resolve(host, config.http_port)?;
    guarded(config, &addresses)?;
    Ok(addresses)
}

/// Nobody is let in unasked from another machine, unless the configuration says so.
fn guarded(config: &Config, addresses: &[SocketAddr]) -> Outcome<()> {
    let host = config.http_address.as_str();
    if open(addresses) && config.webserver.is_none() && config.http_anonymous == Anonymous::Loopback
    {
        let message = format!(
            "http_address '{host}' is reachable from other machines, and no authentication is set"
        );
        return Err(Failure::new(Class::Config, message).hint(
            "set webserver_username and webserver_password, or \"http_allow_unauthenticated\": \
             true where the network keeps strangers out",
        ));
    }
    Ok(())
}

/// As PGHoard: empty is every IPv4 address, a name is looked up as IPv4.
fn resolve(host: &str, port: u16) -> Outcome<Vec<SocketAddr>> {
    if host.is_empty() {
        return Ok(vec![SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)]);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let about = format!("http_address '{host}'");
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|e| Failure::io(&e, &about))?;
    let found: Vec<SocketAddr> = found.filter(SocketAddr::is_ipv4).collect();
    match found.is_empty() {
        true => Err(Failure::new(
            Class::Config,
            format!("{about} has no IPv4 address"),
        )),
        false => Ok(found),
    }
}

/// What a request is answered by; a reload exchanges it as a whole.
pub struct Server {
    routes: routes::Routes,
    /// Digest of the one `Authorization` that is let in.
    authorization: Option<[u8; 32]>,
    /// Digest of the token that may look.
    monitor: Option<[u8; 32]>,
    tls: Option<TlsAcceptor>,
    work: answer::Work,
}

impl Server {
    fn new(routes: routes::Routes, work: answer::Work) -> Outcome<Server> {
        let config = &routes.context.config;
        let tls = config.http_tls.as_ref();
        let tls = tls.map(|files| tls::server(&files.certificate, &files.key));
        let tls = tls.transpose()?.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        Ok(Server {
            monitor: config
                .http_monitor_token
                .as_ref()
                .map(|t| digest(t.reveal())),
            authorization: config.webserver.as_ref().map(authorization),
            tls,
            work,
            routes,
        })
    }
}

struct Current(Mutex<Arc<Server>>);

impl Current {
    fn lock(&self) -> MutexGuard<'_, Arc<Server>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server(&self) -> Arc<Server> {
        Arc::clone(&self.lock())
    }
}

fn authorization(webserver: &Credentials) -> [u8; 32] {
    let login = format!("{}:{}", webserver.username, webserver.password.reveal());
    answer::authorization(&STANDARD.encode(login))
}
