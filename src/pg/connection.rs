//! One connection: start-up, simple queries, and the frames everything else is made of.
//!
//! Reading is safe to cancel: a frame is taken out of the buffer only when it is complete.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::time::Instant;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use machine::Class;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use smol::future::{FutureExt, poll_once};
use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use smol::net::TcpStream;
use smol::net::unix::UnixStream;
use smol::{Timer, net};

use super::auth;
use super::conninfo::{Conninfo, Host, Place, SslMode, Target};
use super::fault::{Answer, Fault, SqlState};
use super::input::{Frame, Input};
use super::tls;

/// Rows of one answer together; we ask about slots and tablespaces, never about tables.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// The oldest server we serve.
const VERSION_MIN: u32 = 120_000;

pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// What a connection is for: SQL, or a walsender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Physical,
}

pub struct Connection {
    socket: Box<dyn Socket>,
    input: Input,
    output: BytesMut,
    server: String,
    mode: Mode,
    version: u32,
    process: u32,
    parameters: BTreeMap<String, String>,
}

/// One row of text values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row(Vec<Option<Vec<u8>>>);

impl Row {
    pub fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.0.get(column)?.as_deref()
    }

    /// `None` for NULL, for a column that is not there and for what is not UTF-8.
    pub fn text(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(column)?).ok()
    }

    pub fn parse<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.text(column)?.parse().ok()
    }
}

impl Connection {
    /// Connects to the first host that lets us in and is what `target_session_attrs` asks for.
    pub async fn connect(info: &Conninfo, mode: Mode, deadline: Instant) -> Answer<Connection> {
        let mut faults: Vec<Fault> = Vec::new();
        for host in &info.hosts {
            match reach(info, host, mode, deadline).await {
                Ok(connection) => return Ok(connection),
                // Whoever knows us and says no will not be overruled by the next host.
                Err(e) if matches!(e.failure.class, Class::Auth | Class::Denied) => return Err(e),
                Err(e) => faults.push(e),
            }
        }
        let others: Vec<_> = faults.iter().map(|f| f.failure.message.clone()).collect();
        let mut last = faults
            .pop()
            .unwrap_or_else(|| Fault::new(Class::Config, "connection: no host is given"));
        if others.len() > 1 {
            last.failure.message = others.join("; ");
        }
        Err(last)
    }

    /// As PostgreSQL numbers itself: 150018 for 15.18.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The server's process that serves us; 0 where it does not say.
    pub fn process(&self) -> u32 {
        self.process
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// For messages: where the server is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A parameter the server reported, for example `in_hot_standby` since 14.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Runs one statement and returns the rows of its last result.
    pub async fn simple_query(&mut self, sql: &str, deadline: Instant) -> Answer<Vec<Row>> {
        self.query(sql, deadline).await?;
        let (mut rows, mut fault, mut size) = (Vec::new(), None, 0);
        loop {
            let frame = self.must(deadline).await?;
            match frame.tag {
                b'T' => rows.clear(),
                b'D' => {
                    size += self.body(frame).len();
                    if size > ANSWER_MAX_BYTES {
                        return Err(self.violation("an answer of at most 64 MiB"));
                    }
                    rows.push(self.row(frame)?);
                }
                b'C' | b'I' => {}
                b'E' => fault = Some(self.refusal(frame)),
                b'Z' => return fault.map_or(Ok(rows), Err),
                _ => return Err(self.violation("rows of a query")),
            }
        }
    }

    /// Says goodbye; dropping the connection is enough, this spares the server a log line.
    pub async fn close(mut self, deadline: Instant) -> Answer<()> {
        frontend::terminate(&mut self.output);
        self.flush(deadline).await
    }

    pub(super) async fn query(&mut self, sql: &str, deadline: Instant) -> Answer<()> {
        self.write(|output| frontend::query(sql, output))?;
        self.flush(deadline).await
    }

    /// Adds a message to the output; [`Connection::flush`] sends it.
    pub(super) fn write(
        &mut self,
        message: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Answer<()> {
        message(&mut self.output)
            .map_err(|e| Fault::new(Class::Internal, format!("message to postgres: {e}")))
    }

    pub(super) async fn flush(&mut self, deadline: Instant) -> Answer<()> {
        let (socket, output) = (&mut self.socket, &self.output);
        let sent = before(deadline, async {
            socket.write_all(output).await?;
            socket.flush().await
        })
        .await;
        self.output.clear();
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(Fault::io(&e, &self.server)),
            None => Err(self.late()),
        }
    }

    /// The next message that is not a side remark; `None` when the deadline passes first.
    pub(super) async fn frame(&mut self, deadline: Instant) -> Answer<Option<Frame>> {
        loop {
            if let Some(frame) = self.input.frame(&self.server)? {
                match frame.tag {
                    b'N' => self.notice(frame),
                    b'S' => self.remember(frame)?,
                    b'A' => {}
                    _ => return Ok(Some(frame)),
                }
                continue;
            }
            let socket = &mut self.socket;
            let room = self.input.room();
            match before(deadline, socket.read(room)).await {
                None => return Ok(None),
                Some(Ok(0)) => return Err(Fault::hung_up(&self.server)),
                Some(Ok(count)) => self.input.filled(count),
                Some(Err(e)) => return Err(Fault::io(&e, &self.server)),
            }
        }
    }

    /// The next message; a passed deadline is a failure.
    pub(super) async fn must(&mut self, deadline: Instant) -> Answer<Frame> {
        self.frame(deadline).await?.ok_or_else(|| self.late())
    }

    /// Whether a whole message can be had without waiting.
    pub(super) async fn ready(&mut self) -> bool {
        if self.input.complete() {
            return true;
        }
        let socket = &mut self.socket;
        let room = self.input.room();
        // An error or the end shows again at the next read.
        if let Some(Ok(count)) = poll_once(socket.read(room)).await {
            self.input.filled(count);
        }
        self.input.complete()
    }

    pub(super) fn body(&self, frame: Frame) -> &[u8] {
        self.input.body(frame)
    }

    /// One of the rare messages, parsed by the library (which wants its own copy).
    pub(super) fn message(&self, frame: Frame) -> Answer<Message> {
        match Message::parse(&mut BytesMut::from(self.input.whole(frame))) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.violation("a whole message")),
            Err(e) => Err(self.violation(&format!("a message of the protocol: {e}"))),
        }
    }

    pub(super) fn row(&self, frame: Frame) -> Answer<Row> {
        let Message::DataRow(body) = self.message(frame)? else {
            return Err(self.violation("a data row"));
        };
        let mut values = Vec::new();
        let mut ranges = body.ranges();
        while let Some(range) = ranges
            .next()
            .map_err(|e| self.violation(&format!("a data row: {e}")))?
        {
            values.push(range.and_then(|r| body.buffer().get(r).map(<[u8]>::to_vec)));
        }
        Ok(Row(values))
    }

    /// The fault an ErrorResponse stands for.
    pub(super) fn refusal(&self, frame: Frame) -> Fault {
        match self.message(frame) {
            Ok(Message::ErrorResponse(body)) => Fault::refusal(body.fields(), &self.server),
            Ok(_) => self.violation("an error"),
            Err(e) => e,
        }
    }

    /// After an error in the middle of an exchange: reads up to ReadyForQuery, so that the
    /// connection can be used again, and gives the fault back.
    pub(super) async fn recover(&mut self, fault: Fault, deadline: Instant) -> Fault {
        loop {
            match self.must(deadline).await {
                Ok(frame) if frame.tag == b'Z' => return fault,
                Ok(_) => {}
                Err(_) => return fault,
            }
        }
    }

    /// Expects a message of this tag; an error of the server is returned as such.
    pub(super) async fn expect(&mut self, tag: u8, what: &str, deadline: Instant) -> Answer<Frame> {
        let frame = self.must(deadline).await?;
        match frame.tag {
            found if found == tag => Ok(frame),
            b'E' => {
                let fault = self.refusal(frame);
                Err(self.recover(fault, deadline).await)
            }
            _ => Err(self.violation(what)),
        }
    }

    /// The server sent something else than the protocol allows here.
    pub fn violation(&self, expected: &str) -> Fault {
        Fault::protocol(&self.server, expected)
    }

    pub(super) fn late(&self) -> Fault {
        Fault::new(
            Class::Timeout,
            format!("postgres at {}: no answer before the deadline", self.server),
        )
    }

    fn notice(&self, frame: Frame) {
        if let Ok(Message::NoticeResponse(body)) = self.message(frame) {
            let notice = Fault::refusal(body.fields(), &self.server);
            log::debug!("notice of {}", notice.failure.message);
        }
    }

    fn remember(&mut self, frame: Frame) -> Answer<()> {
        if let Message::ParameterStatus(body) = self.message(frame)?
            && let (Ok(name), Ok(value)) = (body.name(), body.value())
        {
            self.parameters.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }
}

/// One host, with the detours of `allow` and `prefer`.
async fn reach(info: &Conninfo, host: &Host, mode: Mode, deadline: Instant) -> Answer<Connection> {
    let limit = info
        .connect_timeout
        .and_then(|t| Instant::now().checked_add(t))
        .map_or(deadline, |own| own.min(deadline));
    let first = match (&host.place, info.sslmode) {
        (Place::Socket(_), _) | (_, SslMode::Disable | SslMode::Allow) => Cover::Plain,
        (_, SslMode::Prefer) => Cover::Offer,
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => Cover::Tls,
    };
    let second = match (&host.place, info.sslmode) {
        (Place::Network(_), SslMode::Allow) => Some(Cover::Tls),
        (Place::Network(_), SslMode::Prefer) => Some(Cover::Plain),
        _ => None,
    };
    let fault = match log_in(info, host, mode, first, limit).await {
        Ok(connection) => return connection.on_target(info.target),
        Err(fault) => fault,
    };
    // Only a door that is closed to this kind of connection, or TLS that fails, is worth a second
    // try: pg_hba.conf has separate lines for each.
    let refused = fault.is(SqlState::DENIED_AT_THE_DOOR);
    let no_tls = fault.sqlstate.is_none()
        && first == Cover::Offer
        && matches!(fault.failure.class, Class::Auth | Class::Unsupported);
    match second.filter(|_| refused || no_tls) {
        Some(cover) => match log_in(info, host, mode, cover, limit).await {
            Ok(connection) => connection.on_target(info.target),
            Err(_) => Err(fault),
        },
        None => Err(fault),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cover {
    Plain,
    /// TLS if the server has it.
    Offer,
    Tls,
}

async fn log_in(
    info: &Conninfo,
    host: &Host,
    mode: Mode,
    cover: Cover,
    deadline: Instant,
) -> Answer<Connection> {
    let server = host.to_string();
    let late = || {
        let message = format!("postgres at {server}: no connection before the deadline");
        Fault::new(Class::Timeout, message)
    };
    let dialled = before(deadline, dial(info, host, cover, &server)).await;
    let tls::Wrapped { socket, end_point } = dialled.ok_or_else(late)??;
    let mut connection = Connection {
        socket,
        input: Input::new(),
        output: BytesMut::new(),
        server,
        mode,
        version: 0,
        process: 0,
        parameters: BTreeMap::new(),
    };
    let mut parameters = vec![
        ("user", info.user.as_str()),
        ("application_name", info.application_name.as_str()),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO"),
    ];
    match mode {
        Mode::Plain => parameters.push(("database", info.dbname.as_str())),
        Mode::Physical => parameters.push(("replication", "true")),
    }
    if let Some(options) = &info.options {
        parameters.push(("options", options));
    }
    connection.write(|output| frontend::startup_message(parameters, output))?;
    connection.flush(deadline).await?;
    auth::authenticate(&mut connection, info, host, end_point, deadline).await?;
    connection.settle(deadline).await?;
    Ok(connection)
}

async fn dial(info: &Conninfo, host: &Host, cover: Cover, server: &str) -> Answer<tls::Wrapped> {
    let fault = |e: io::Error| Fault::io(&e, server);
    let name = match &host.place {
        Place::Socket(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", host.port));
            let socket = UnixStream::connect(path).await.map_err(fault)?;
            return Ok(tls::Wrapped {
                socket: Box::new(socket),
                end_point: None,
            });
        }
        Place::Network(name) => name,
    };
    let addresses = net::resolve((name.as_str(), host.port)).await;
    let addresses = addresses.map_err(|e| {
        let message = format!("postgres at {server}: cannot resolve the name: {e}");
        Fault::new(Class::Network, message)
    })?;
    let mut plain = TcpStream::connect(addresses.as_slice())
        .await
        .map_err(fault)?;
    plain.set_nodelay(true).map_err(fault)?;
    if cover != Cover::Plain {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        plain.write_all(&request).await.map_err(fault)?;
        // Exactly one byte: anything behind it would be an injection into the TLS session.
        let mut reply = [0];
        plain.read_exact(&mut reply).await.map_err(fault)?;
        let [reply] = reply;
        if tls::accepted(reply, server)? {
            return tls::wrap(plain, info, host).await;
        }
        if cover == Cover::Tls {
            let message = format!("postgres at {server}: the server does not offer TLS");
            return Err(Fault::new(Class::Unsupported, message)
                .hint("set ssl=on there, or choose another sslmode here"));
        }
    }
    Ok(tls::Wrapped {
        socket: Box::new(plain),
        end_point: None,
    })
}

impl Connection {
    /// From AuthenticationOk to ReadyForQuery.
    async fn settle(&mut self, deadline: Instant) -> Answer<()> {
        loop {
            let frame = self.must(deadline).await?;
            match frame.tag {
                b'Z' => break,
                // BackendKeyData; its key would only serve to cancel.
                b'K' => {
                    let process = self.body(frame).first_chunk();
                    self.process = process.map_or(0, |bytes| u32::from_be_bytes(*bytes));
                }
                // NegotiateProtocolVersion of a server that knows less.
                b'v' => {}
                b'E' => return Err(self.refusal(frame)),
                _ => return Err(self.violation("the end of start-up")),
            }
        }
        let text = self.parameter("server_version").unwrap_or("").to_owned();
        let version = version_number(&text);
        self.version = version.ok_or_else(|| self.violation("a server_version"))?;
        if self.version < VERSION_MIN {
            let message = format!(
                "postgres at {}: server version {text} is too old, expected 12 or later",
                self.server
            );
            return Err(Fault::new(Class::Unsupported, message));
        }
        Ok(())
    }

    fn on_target(self, target: Target) -> Answer<Connection> {
        let standby = match (target, self.parameter("in_hot_standby")) {
            (Target::Any, _) => return Ok(self),
            (_, Some(value)) => value == "on",
            (Target::Primary | Target::Standby, None) => {
                let message = format!(
                    "postgres at {}: target_session_attrs needs a server of version 14 or later",
                    self.server
                );
                return Err(Fault::new(Class::Unsupported, message));
            }
        };
        match standby == (target == Target::Standby) {
            true => Ok(self),
            false => Err(Fault::new(
                Class::Network,
                format!(
                    "postgres at {}: is a {}, which target_session_attrs excludes",
                    self.server,
                    if standby { "standby" } else { "primary" }
                ),
            )),
        }
    }
}

/// `15.18 (Debian 15.18-0+deb12u1)` is 150018; `18beta1` is 180000.
fn version_number(text: &str) -> Option<u32> {
    let digits = |t: &str| {
        t.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
    };
    let major = digits(text);
    let minor = text.strip_prefix(&major)?.strip_prefix('.').map(digits);
    let minor = minor.map_or(Some(0), |m| m.parse().ok())?;
    major
        .parse::<u32>()
        .ok()?
        .checked_mul(10_000)?
        .checked_add(minor)
}

/// The future's value, or nothing when the deadline comes first. The timer costs nothing as long
/// as the future is ready at once.
async fn before<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    let value = async { Some(future.await) };
    value
        .or(async {
            Timer::at(deadline).await;
            None
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbered_as_postgres_does() {
        for (text, expected) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("12.0", Some(120_000)),
            ("18beta1", Some(180_000)),
            ("9.6.24", Some(90_006)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(version_number(text), expected, "{text}");
        }
    }
}
