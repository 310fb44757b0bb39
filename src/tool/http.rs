//! The daemon asked over HTTP, by tools that want one answer and then end.
//!
//! HTTP/1.0 on purpose: the reply ends with the connection and is never chunked, so there is
//! nothing to parse but a status line, headers of one line each and an empty line.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machine::Class;

use crate::config::{Config, Secret};
use crate::failure::{Failure, Outcome};

#[derive(Clone, Debug)]
pub struct Daemon {
    pub host: String,
    pub port: u16,
    pub login: Option<(String, Secret)>,
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
}

/// A fetch of the daemon's may itself wait 30 s for the store.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

const HEAD_BYTES_MAX: u64 = 8 << 10;
/// Of a segment at a time.
const BODY_BLOCK: usize = 256 << 10;
const REPLY_HEAD_BYTES_MAX: usize = 64 << 10;

/// A list of basebackups with their metadata is far smaller.
const REPLY_BYTES_MAX: u64 = 64 << 20;

impl Daemon {
    /// The daemon of this configuration, on this machine.
    pub fn of(config: &Config) -> Daemon {
        let host = match config.http_address.as_str() {
            "" | "0.0.0.0" | "::" => "127.0.0.1",
            host => host,
        };
        let login = config.webserver.as_ref();
        Daemon {
            host: host.to_owned(),
            port: config.http_port,
            login: login.map(|login| (login.username.clone(), login.password.clone())),
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
        let stream = self.request((method, path), headers, &mut &*body, length)?;
        self.reply(stream)
    }

    /// Puts a file's content.
    pub fn put(&self, path: &str, file: &Path) -> Outcome<Reply> {
        let told = |e: std::io::Error| Failure::io(&e, file.display());
        let mut content = File::open(file).map_err(told)?;
        let length = content.metadata().map_err(told)?.len();
        let stream = self.request(("PUT", path), &[], &mut content, length)?;
        self.reply(stream)
    }

    /// Gets a file: the body of status 200 goes to `save`, whole or ending in an error.
    pub fn get(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        save: impl FnOnce(&mut dyn Read) -> Outcome<()>,
    ) -> Outcome<Reply> {
        let stream = self.request(("GET", path), headers, &mut std::io::empty(), 0)?;
        let mut stream = BufReader::with_capacity(BODY_BLOCK, stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let before = head.len();
            let line = (&mut stream)
                .take(HEAD_BYTES_MAX)
                .read_until(b'\n', &mut head);
            line.map_err(|e| self.failed(&e))?;
            if head.len() == before || head.len() > REPLY_HEAD_BYTES_MAX {
                return Err(self.no_http());
            }
        }
        let mut reply = parse(&head).ok_or_else(|| self.no_http())?;
        if reply.status != 200 {
            let rest = stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply.body);
            return rest.map(|_| reply).map_err(|e| self.failed(&e));
        }
        let length = reply.header("content-length");
        let length: u64 = length
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| self.no_http())?;
        let mut body = Whole {
            daemon: self,
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
    ) -> Outcome<TcpStream> {
        let unsafe_text = |text: &str| text.contains(|c: char| c.is_control());
        let hostile = headers.iter().any(|(_, value)| unsafe_text(value));
        if hostile || unsafe_text(path) || path.contains(' ') {
            let message = format!("{path:?} cannot be asked for over HTTP");
            return Err(Failure::new(Class::Config, message));
        }
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n", self.host);
        if let Some((name, password)) = &self.login {
            let login = STANDARD.encode(format!("{name}:{}", password.reveal()));
            request.push_str(&format!("Authorization: Basic {login}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("Content-Length: {length}\r\n\r\n"));
        let mut stream = self.connect()?;
        let timeouts = stream
            .set_read_timeout(Some(ANSWER_WITHIN))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_WITHIN)));
        timeouts.map_err(|e| self.failed(&e))?;
        let sent = stream.write_all(request.as_bytes());
        sent.map_err(|e| self.failed(&e))?;
        // Refused before all of it was read: the answer says why.
        match std::io::copy(&mut body.take(length), &mut stream) {
            Err(e)
                if e.kind() != ErrorKind::BrokenPipe && e.kind() != ErrorKind::ConnectionReset =>
            {
                Err(self.failed(&e))
            }
            Ok(_) | Err(_) => Ok(stream),
        }
    }

    fn reply(&self, stream: TcpStream) -> Outcome<Reply> {
        let mut reply = Vec::new();
        let read = stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply);
        read.map_err(|e| self.failed(&e))?;
        parse(&reply).ok_or_else(|| self.no_http())
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        let about = format!("HTTP connection to {}:{} failed", self.host, self.port);
        Failure::io(error, about)
    }

    fn no_http(&self) -> Failure {
        let message = format!("{}:{} did not answer in HTTP", self.host, self.port);
        Failure::new(Class::Network, message)
    }

    fn connect(&self) -> Outcome<TcpStream> {
        let addresses = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|e| self.failed(&e))?;
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(self.failed(&last))
    }
}

/// A body of a known length: its end before that is an error.
struct Whole<'a, R> {
    daemon: &'a Daemon,
    stream: R,
    length: u64,
    left: u64,
}

impl<R: Read> Read for Whole<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = (&mut self.stream).take(self.left).read(buffer);
        let got = read.map_err(|e| self.daemon.failed(&e))?;
        self.left -= u64::try_from(got).unwrap_or(0);
        if got > 0 || self.left == 0 || buffer.is_empty() {
            return Ok(got);
        }
        let Daemon { host, port, .. } = self.daemon;
        let (length, got) = (self.length, self.length - self.left);
        let message = format!("{host}:{port} broke off after {got} of {length} bytes");
        Err(Failure::new(Class::Network, message).into())
    }
}

fn parse(reply: &[u8]) -> Option<Reply> {
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (reply.get(..end)?, reply.get(end + 4..)?);
    let mut lines = std::str::from_utf8(head).ok()?.lines();
    let rest = lines.next()?.strip_prefix("HTTP/1.")?;
    let status = rest.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    Some(Reply {
        status,
        headers: headers.collect(),
        body: body.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replies_are_a_status_and_a_body() {
        let reply = parse(b"HTTP/1.1 201 Created\r\nA: b\r\n\r\nbody").unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (201, &b"body"[..]));
        assert_eq!((reply.header("a"), reply.header("b")), (Some("b"), None));
        for bad in [
            "",
            "HTTP/1.1 201 Created\r\n",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), None);
        }
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
                Some(("ada", "hush")),
            ),
        ] {
            let (config, _) = crate::config::parse(&more).unwrap();
            let daemon = Daemon::of(&config);
            assert_eq!((daemon.host.as_str(), daemon.port), (host, 16_000));
            let found = daemon.login.as_ref();
            let found = found.map(|(name, password)| (name.as_str(), password.reveal()));
            assert_eq!(found, login, "{more}");
        }
    }

    #[test]
    fn nobody_there_is_a_network_failure_without_the_password() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let daemon = Daemon {
            host: "127.0.0.1".to_owned(),
            port,
            login: Some(("u".to_owned(), Secret::new("hush"))),
        };
        let failure = daemon.ask("GET", "/status", &[]).unwrap_err();
        assert_eq!(failure.class, Class::Network);
        assert!(!format!("{failure} {daemon:?}").contains("hush"));
        assert!(daemon.ask("GET", "/a b", &[]).is_err());
        assert!(daemon.ask("GET", "/a", &[("x", "a\r\nb: c")]).is_err());
    }
}
