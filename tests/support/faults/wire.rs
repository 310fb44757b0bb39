//! Requests and responses as they pass: heads read by httparse, bodies by their framing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::Answer;

const HEADERS_MAX: usize = 200;
const BLOCK: usize = 64 << 10;

type Headers = Vec<(String, String)>;

enum Framing {
    Length(u64),
    Chunked,
}

pub(super) struct Head {
    pub method: String,
    pub path: String,
    headers: Headers,
}

impl Head {
    /// `None` for a connection on which nothing was said.
    pub fn read(input: &mut BufReader<&TcpStream>) -> io::Result<Option<Head>> {
        let raw = read_raw(input)?;
        if raw.is_empty() {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(&raw).map_err(io::Error::other)?;
        Ok(Some(Head {
            method: request.method.unwrap_or_default().to_owned(),
            path: request.path.unwrap_or_default().to_owned(),
            headers: owned(request.headers),
        }))
    }

    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.headers, name)
    }

    /// Some clients wait for it.
    pub fn invite_body(&self, mut client: &TcpStream) -> io::Result<()> {
        match self.header("expect") {
            Some(_) => client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n"),
            None => Ok(()),
        }
    }

    /// The server closes the connection after its answer, so the end of that is known.
    pub fn forward(&self, mut server: &TcpStream) -> io::Result<()> {
        let mut raw = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            let ours = ["connection", "keep-alive", "expect"];
            if !ours.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
                raw += &format!("{name}: {value}\r\n");
            }
        }
        raw += "Connection: close\r\n\r\n";
        server.write_all(raw.as_bytes())
    }

    /// Returns the size of the body, without its framing.
    pub fn forward_body(
        &self,
        input: &mut BufReader<&TcpStream>,
        mut server: &TcpStream,
        flip: bool,
    ) -> io::Result<u64> {
        let middle = match self.framing() {
            Framing::Length(length) => length / 2,
            Framing::Chunked => 0,
        };
        let (mut passed, mut heard) = (0, true);
        self.body(input, None, &mut |bytes, is_content| {
            let length = u64::try_from(bytes.len()).unwrap();
            if is_content {
                if flip && (passed..passed + length).contains(&middle) {
                    bytes[usize::try_from(middle - passed).unwrap()] ^= 0x10;
                }
                passed += length;
            }
            // A server that refuses need not listen to the end.
            heard = heard && server.write_all(bytes).is_ok();
        })
    }

    pub fn forward_half(
        &self,
        input: &mut BufReader<&TcpStream>,
        mut server: &TcpStream,
    ) -> io::Result<u64> {
        let half = match self.framing() {
            Framing::Length(length) => length / 2,
            Framing::Chunked => 1,
        };
        self.body(input, Some(half), &mut |bytes, _| {
            let _a_deaf_server_is_fine = server.write_all(bytes);
        })
    }

    pub fn skip_body(&self, input: &mut BufReader<&TcpStream>) -> io::Result<u64> {
        self.body(input, None, &mut |_, _| {})
    }

    fn framing(&self) -> Framing {
        let length = self.header("content-length").map(|text| text.parse());
        match length {
            Some(Ok(length)) => Framing::Length(length),
            _ if self.header("transfer-encoding").is_some() => Framing::Chunked,
            _ => Framing::Length(0),
        }
    }

    /// Hands on the bytes as they come, and whether they are content (else framing), until `limit`
    /// bytes of content. Of chunks only whole ones.
    fn body(
        &self,
        input: &mut BufReader<&TcpStream>,
        limit: Option<u64>,
        sink: &mut dyn FnMut(&mut [u8], bool),
    ) -> io::Result<u64> {
        let limit = limit.unwrap_or(u64::MAX);
        if let Framing::Length(length) = self.framing() {
            return content(input, length.min(limit), sink);
        }
        let mut passed = 0;
        while passed < limit {
            let mut line = Vec::new();
            input.read_until(b'\n', &mut line)?;
            let size = chunk_size(&line)?;
            sink(&mut line, false);
            passed += content(input, size, sink)?;
            loop {
                let mut line = Vec::new();
                input.read_until(b'\n', &mut line)?;
                sink(&mut line, false);
                // Trailers come after the last chunk, and an empty line after all.
                if size > 0 || line.len() <= 2 {
                    break;
                }
            }
            if size == 0 {
                break;
            }
        }
        Ok(passed)
    }
}

fn content(
    input: &mut BufReader<&TcpStream>,
    length: u64,
    sink: &mut dyn FnMut(&mut [u8], bool),
) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        let got = input.read(&mut block[..wanted])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sink(&mut block[..got], true);
        left -= u64::try_from(got).unwrap();
    }
    Ok(length)
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    match httparse::parse_chunk_size(line) {
        Ok(httparse::Status::Complete((_, size))) => Ok(size),
        _ => Err(io::Error::other("not a chunk")),
    }
}

#[derive(Clone)]
pub(super) struct Reply {
    pub status: u16,
    headers: Headers,
    pub body: Vec<u8>,
    /// An answer to HEAD, whose length is that of something else.
    headless: bool,
}

impl From<&Answer> for Reply {
    fn from(answer: &Answer) -> Reply {
        Reply {
            status: answer.status,
            headers: answer.headers.clone(),
            body: answer.body.clone().into_bytes(),
            headless: false,
        }
    }
}

impl Reply {
    /// The final one; what came before it is nothing to the client, who was invited already.
    pub fn read_head(input: &mut BufReader<&TcpStream>) -> io::Result<Reply> {
        loop {
            let raw = read_raw(input)?;
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut headers);
            response.parse(&raw).map_err(io::Error::other)?;
            let status = response.code.ok_or(io::ErrorKind::UnexpectedEof)?;
            if status >= 200 {
                return Ok(Reply {
                    status,
                    headers: owned(response.headers),
                    body: Vec::new(),
                    headless: false,
                });
            }
        }
    }

    /// The rest of the connection; chunks become one piece.
    pub fn read_body(&mut self, input: &mut BufReader<&TcpStream>, method: &str) -> io::Result<()> {
        self.headless = method == "HEAD";
        if self.headless {
            return Ok(());
        }
        if header(&self.headers, "transfer-encoding").is_none() {
            input.read_to_end(&mut self.body)?;
            return Ok(());
        }
        loop {
            let mut line = Vec::new();
            input.read_until(b'\n', &mut line)?;
            let size = chunk_size(&line)?;
            if size == 0 {
                return Ok(());
            }
            let body = &mut self.body;
            content(input, size, &mut |bytes, _| body.extend_from_slice(bytes))?;
            input.read_until(b'\n', &mut line)?;
        }
    }

    /// In headers, where a server names itself.
    pub fn rename(&mut self, from: &str, to: &str) {
        for (_, value) in &mut self.headers {
            *value = value.replace(from, to);
        }
    }

    pub fn resize(&mut self, length: usize) {
        if !self.headless {
            self.body.resize(length, b'+');
        }
    }

    /// As the server sent it; its body follows unchanged.
    pub fn send_head(&self, client: &TcpStream) -> io::Result<()> {
        self.send_headers(client, &[])
    }

    /// With the first bytes of its body.
    pub fn send(&self, mut client: &TcpStream, length: usize) -> io::Result<()> {
        let whole = self.body.len().to_string();
        match self.headless || self.status == 204 {
            true => self.send_headers(client, &[])?,
            false => self.send_headers(client, &[("Content-Length", &whole)])?,
        }
        client.write_all(&self.body[..length.min(self.body.len())])
    }

    /// `framing` in the place of its own.
    fn send_headers(&self, mut client: &TcpStream, framing: &[(&str, &str)]) -> io::Result<()> {
        let mut raw = format!("HTTP/1.1 {} Of The Test\r\n", self.status);
        for (name, value) in &self.headers {
            let lower = name.to_ascii_lowercase();
            let framed = ["content-length", "transfer-encoding"].contains(&lower.as_str());
            if lower != "connection" && (framing.is_empty() || !framed) {
                raw += &format!("{name}: {value}\r\n");
            }
        }
        for (name, value) in framing {
            raw += &format!("{name}: {value}\r\n");
        }
        raw += "Connection: close\r\n\r\n";
        client.write_all(raw.as_bytes())
    }
}

/// To the empty line, or nothing.
fn read_raw(input: &mut BufReader<&TcpStream>) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    loop {
        let length = input.read_until(b'\n', &mut raw)?;
        match length {
            0 if raw.is_empty() => return Ok(raw),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1 | 2 if raw.ends_with(b"\n\r\n") || raw.ends_with(b"\n\n") => return Ok(raw),
            _ => {}
        }
    }
}

/// Values are ASCII in practice; what is not passes as Latin-1 would be read.
fn owned(headers: &[httparse::Header<'_>]) -> Headers {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    headers
        .iter()
        .map(|header| (header.name.to_owned(), text(header.value)))
        .collect()
}

fn header(headers: &Headers, name: &str) -> Option<String> {
    let found = headers
        .iter()
        .find(|(have, _)| have.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.clone())
}

/// The peer gets a reset instead of an end once the stream is dropped.
pub(super) fn reset(stream: &TcpStream) -> io::Result<()> {
    let at_once = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &at_once)?;
    Ok(())
}

/// Until the client gives up.
pub(super) fn wait_for_end(input: &mut BufReader<&TcpStream>) -> io::Result<()> {
    io::copy(input, &mut io::sink()).map(drop)
}
