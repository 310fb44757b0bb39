//! Asking somebody over HTTP or HTTPS: the daemon by our tools, a pushgateway by the daemon.
//!
//! HTTP/1.0 on purpose: the reply ends with the connection and is never chunked, so there is
//! nothing to parse but a status line, headers of one line each and an empty line. One request a
//! connection; over TLS the peer is always verified.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machine::Class;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::config::{Config, Secret};
use crate::failure::{Failure, Outcome};
use crate::tls::{self, Trust};

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Peer {
    pub host: String,
    pub port: u16,
    pub login: Option<Login>,
    /// None is plain HTTP.
    pub tls: Option<Trust>,
    pub patience: Patience,
}

/// Name and password of basic authentication, with a colon between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login(pub Secret);

impl Login {
    pub fn new(name: &str, password: &str) -> Login {
        Login(Secret::new(format!("{name}:{password}")))
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub connect: Duration,
    /// For each read and write.
    pub answer: Duration,
}

impl Patience {
    /// A fetch of the daemon's may itself wait 30 s for the store.
    pub const DAEMON: Patience = Patience {
        connect: Duration::from_secs(10),
        answer: Duration::from_secs(120),
    };
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }
}

/// One line of the head.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// Of a segment at a time.
const BODY_BLOCK: usize = 256 << 10;
const REPLY_HEAD_BYTES_MAX: usize = 64 << 10;

/// A list of basebackups with their metadata is far smaller.
const REPLY_BYTES_MAX: u64 = 64 << 20;

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

type Conversation = BufReader<Box<dyn Wire>>;

impl Peer {
    /// The daemon of this configuration, on this machine. Its certificate is in the configuration
    /// too, so that no name has to be right.
    pub fn of(config: &Config) -> Peer {
        let host = match config.http_address.as_str() {
            "" | "0.0.0.0" | "::" => "127.0.0.1",
            host => host,
        };
        let login = config.webserver.as_ref();
        let tls = config.http_tls.as_ref();
        Peer {
            host: host.to_owned(),
            port: config.http_port,
            login: login.map(|login| Login::new(&login.username, login.password.reveal())),
            tls: tls.map(|tls| Trust::Own(tls.certificate.clone())),
            patience: Patience::DAEMON,
        }
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Outcome<Reply> {
        self.send(method, path, headers, &[])
    }

    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Outcome<Reply> {
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let mut stream = self.request((method, path), headers, &mut &*body, length)?;
        let mut reply = self.head(&mut stream)?;
        // Of HEAD the length is not that of what follows, if anything does.
        let length = reply.length().filter(|_| method != "HEAD");
        self.body(stream, &mut reply, length)?;
        Ok(reply)
    }

    /// Puts a file's content.
    pub fn put(&self, path: &str, file: &Path) -> Outcome<Reply> {
        let told = |e: std::io::Error| Failure::io(&e, file.display());
        let mut content = File::open(file).map_err(told)?;
        let length = content.metadata().map_err(told)?.len();
        let mut stream = self.request(("PUT", path), &[], &mut content, length)?;
        let mut reply = self.head(&mut stream)?;
        let length = reply.length();
        self.body(stream, &mut reply, length)?;
        Ok(reply)
    }

    /// Gets a file: the body of status 200 goes to `save`, whole or ending in an error.
    pub fn get(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        save: impl FnOnce(&mut dyn Read) -> Outcome<()>,
    ) -> Outcome<Reply> {
        let mut stream = self.request(("GET", path), headers, &mut std::io::empty(), 0)?;
        let mut reply = self.head(&mut stream)?;
        if reply.status != 200 {
            let length = reply.length();
            self.body(stream, &mut reply, length)?;
            return Ok(reply);
        }
        let length = reply.length().ok_or_else(|| self.no_http())?;
        let mut body = Whole {
            peer: self,
            stream,
            length,
            left: length,
        };
        save(&mut body)?;
        Ok(reply)
    }

    fn request(
        &self,
        (method, path): (&str, &str),
        headers: &[(&str, &str)],
        body: &mut dyn Read,
        length: u64,
    ) -> Outcome<Conversation> {
        let unsafe_text = |text: &str| text.contains(|c: char| c.is_control());
        let hostile = headers.iter().any(|(_, value)| unsafe_text(value));
        if hostile || unsafe_text(path) || path.contains(' ') {
            let message = format!("{path:?} cannot be asked for over HTTP");
            return Err(Failure::new(Class::Config, message));
        }
        let (host, port) = (&self.host, self.port);
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\n");
        if let Some(Login(login)) = &self.login {
            let login = STANDARD.encode(login.reveal());
            request.push_str(&format!("Authorization: Basic {login}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("Content-Length: {length}\r\n\r\n"));
        let mut stream = self.connect()?;
        let sent = stream.write_all(request.as_bytes());
        sent.map_err(|e| self.failed(&e))?;
        let sent = std::io::copy(&mut body.take(length), &mut stream);
        match sent.and_then(|_| stream.flush()) {
            // Refused before all of it was read: the answer says why.
            Err(e)
                if e.kind() != ErrorKind::BrokenPipe && e.kind() != ErrorKind::ConnectionReset =>
            {
                Err(self.failed(&e))
            }
            Ok(()) | Err(_) => Ok(BufReader::with_capacity(BODY_BLOCK, stream)),
        }
    }

    fn head(&self, stream: &mut Conversation) -> Outcome<Reply> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let before = head.len();
            let line = stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut head);
            line.map_err(|e| self.failed(&e))?;
            if head.len() == before || head.len() > REPLY_HEAD_BYTES_MAX {
                return Err(self.no_http());
            }
        }
        parse(&head).ok_or_else(|| self.no_http())
    }

    /// To its length, or to its end where that is not known.
    fn body(&self, stream: Conversation, reply: &mut Reply, length: Option<u64>) -> Outcome<()> {
        let wanted = length.unwrap_or(REPLY_BYTES_MAX).min(REPLY_BYTES_MAX);
        let read = stream.take(wanted).read_to_end(&mut reply.body);
        let read = read.map_err(|e| self.failed(&e))?;
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        match length {
            Some(length) if read < length => Err(self.broke_off(read, length)),
            Some(_) | None => Ok(()),
        }
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        let about = format!("HTTP connection to {}:{} failed", self.host, self.port);
        match error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidCertificate(why)) => {
                let message = format!("{about}: its certificate is not trusted: {why:?}");
                Failure::new(Class::Auth, message)
                    .hint("name the authority that signed it, and ask by a name that is in it")
            }
            Some(why) => Failure::new(Class::Network, format!("{about}: {why}"))
                .hint("does it speak TLS on that port?"),
            None => Failure::io(error, about),
        }
    }

    fn no_http(&self) -> Failure {
        let message = format!("{}:{} did not answer in HTTP", self.host, self.port);
        match self.tls {
            Some(_) => Failure::new(Class::Network, message),
            None => Failure::new(Class::Network, message).hint("does it want TLS?"),
        }
    }

    fn broke_off(&self, read: u64, length: u64) -> Failure {
        let (host, port) = (&self.host, self.port);
        let message = format!("{host}:{port} broke off after {read} of {length} bytes");
        Failure::new(Class::Network, message)
    }

    fn connect(&self) -> Outcome<Box<dyn Wire>> {
        let trust = self.tls.as_ref().map(tls::client).transpose()?;
        let stream = self.reach()?;
        let timeouts = stream
            .set_read_timeout(Some(self.patience.answer))
            .and_then(|()| stream.set_write_timeout(Some(self.patience.answer)));
        timeouts.map_err(|e| self.failed(&e))?;
        let Some(config) = trust else {
            return Ok(Box::new(stream));
        };
        let unfit = |_| {
            let message = format!("'{}' is not a name a certificate can carry", self.host);
            Failure::new(Class::Config, message)
        };
        let name = ServerName::try_from(self.host.clone()).map_err(unfit)?;
        let session = ClientConnection::new(Arc::new(config), name)
            .map_err(|e| Failure::new(Class::Internal, format!("TLS: {e}")))?;
        let mut stream = StreamOwned::new(session, stream);
        // Now, so that a refusal is told as what it is.
        while stream.conn.is_handshaking() {
            let step = stream.conn.complete_io(&mut stream.sock);
            step.map_err(|e| self.failed(&e))?;
        }
        Ok(Box::new(stream))
    }

    fn reach(&self) -> Outcome<TcpStream> {
        let addresses = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|e| self.failed(&e))?;
        let mut last = std::io::Error::from(ErrorKind::NotFound);
        for address in addresses {
            match TcpStream::connect_timeout(&address, self.patience.connect) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(self.failed(&last))
    }
}

/// A body of a known length: its end before that is an error.
struct Whole<'a> {
    peer: &'a Peer,
    stream: Conversation,
    length: u64,
    left: u64,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = (&mut self.stream).take(self.left).read(buffer);
        let got = read.map_err(|e| self.peer.failed(&e))?;
        self.left -= u64::try_from(got).unwrap_or(0);
        if got > 0 || self.left == 0 || buffer.is_empty() {
            return Ok(got);
        }
        Err(self
            .peer
            .broke_off(self.length - self.left, self.length)
            .into())
    }
}

/// A head, up to its empty line.
fn parse(head: &[u8]) -> Option<Reply> {
    let mut lines = std::str::from_utf8(head).ok()?.lines();
    let rest = lines.next()?.strip_prefix("HTTP/1.")?;
    let status = rest.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    Some(Reply {
        status,
        headers: headers.collect(),
        body: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use serde_json::json;

    use super::*;

    fn peer(port: u16) -> Peer {
        Peer {
            host: "127.0.0.1".to_owned(),
            port,
            login: Some(Login::new("u", "hush")),
            tls: None,
            patience: Patience::DAEMON,
        }
    }

    #[test]
    fn replies_are_a_status_and_a_whole_body() {
        for (method, said, expected) in [
            (
                "GET",
                "HTTP/1.1 201 Created\r\nA: b\r\n\r\nbody",
                Some("201 body"),
            ),
            (
                "GET",
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nbody",
                Some("200 bo"),
            ),
            (
                "GET",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody",
                None,
            ),
            (
                "HEAD",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                Some("200 "),
            ),
            ("GET", "", None),
            ("GET", "HTTP/1.1 201 Created\r\n", None),
            ("GET", "SSH-2.0\r\n\r\n", None),
            ("GET", "HTTP/1.1 x\r\n\r\n", None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _count = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(said.as_bytes()).unwrap();
            });
            let reply = peer(port).ask(method, "/", &[]);
            let found = reply.map(|r| format!("{} {}", r.status, String::from_utf8_lossy(&r.body)));
            assert_eq!(found.ok().as_deref(), expected, "{said}");
            server.join().unwrap();
        }
        let reply = parse(b"HTTP/1.1 201 Created\r\nA: b\r\n\r\n").unwrap();
        assert_eq!((reply.header("a"), reply.header("b")), (Some("b"), None));
    }

    #[test]
    fn differs_the_login_of_the_configuration_is_used() {
        for (more, host, login) in [
            (json!({}), "127.0.0.1", None),
            (json!({ "http_address": "" }), "127.0.0.1", None),
            (json!({ "http_address": "::" }), "127.0.0.1", None),
            (json!({ "http_address": "::1" }), "::1", None),
            (
                json!({ "webserver_username": "ada", "webserver_password": "hush" }),
                "127.0.0.1",
                Some("ada:hush"),
            ),
        ] {
            let (config, _) = crate::config::parse(&more).unwrap();
            let daemon = Peer::of(&config);
            assert_eq!((daemon.host.as_str(), daemon.port), (host, 16_000));
            let found = daemon.login.as_ref();
            assert_eq!(found.map(|Login(login)| login.reveal()), login, "{more}");
        }
    }

    #[test]
    fn nobody_there_is_a_network_failure_without_the_password() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let daemon = peer(port);
        let failure = daemon.ask("GET", "/status", &[]).unwrap_err();
        assert_eq!(failure.class, Class::Network);
        assert!(!format!("{failure} {daemon:?}").contains("hush"));
        assert!(daemon.ask("GET", "/a b", &[]).is_err());
        assert!(daemon.ask("GET", "/a", &[("x", "a\r\nb: c")]).is_err());
    }
}
