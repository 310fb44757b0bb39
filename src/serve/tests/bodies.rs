//! Bodies as clients send them: in chunks, after asking first, too long, too short, broken off;
//! and several requests on one connection.

use super::*;

const MARK: &str = "main/xlog_incoming";

/// Sends parts, each after the server said something if `asks`; gives all that came back.
fn talk(address: SocketAddr, parts: &[&[u8]], asks: bool) -> String {
    hear(&mut say(address, parts, asks))
}

/// Sends that and no more: the client is gone.
fn cut(address: SocketAddr, parts: &[&[u8]]) -> String {
    let mut said = say(address, parts, false);
    let _half = said.0.shutdown(std::net::Shutdown::Write);
    hear(&mut said)
}

fn hear((stream, reply): &mut (TcpStream, Vec<u8>)) -> String {
    let _reset = stream.read_to_end(reply);
    String::from_utf8_lossy(reply).into_owned()
}

fn say(address: SocketAddr, parts: &[&[u8]], asks: bool) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut reply = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        if asks && number > 0 {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).unwrap();
            reply.extend_from_slice(&bytes[..count]);
        }
        let _closed = stream.write_all(part);
    }
    (stream, reply)
}

fn head(more: &str) -> String {
    format!("PUT /main/archive/{NAME} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n")
}

/// A WAL segment of 1 MiB in chunks, and the same after `100 Continue`.
#[test]
fn a_body_in_chunks_and_one_that_asks_first_arrive() {
    for (asks, more) in [
        (false, "transfer-encoding: chunked\r\n"),
        (
            true,
            "transfer-encoding: chunked\r\nexpect: 100-continue\r\n",
        ),
    ] {
        let api = Api::new(json!({}));
        let address = api.handle.address();
        let body = wal(MIB);
        thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let mut chunks = Vec::new();
                for chunk in body.chunks(100_000) {
                    chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    chunks.extend_from_slice(chunk);
                    chunks.extend_from_slice(b"\r\n");
                }
                chunks.extend_from_slice(b"0\r\n\r\n");
                talk(address, &[head(more).as_bytes(), &chunks], asks)
            });
            let report = api.reports.recv_timeout(Duration::from_secs(20)).unwrap();
            for (site, event) in report.events {
                assert!(matches!(event, machine::Event::Spooled { .. }), "{event:?}");
                api.desk
                    .told(&archiving::envelope(site, archiving::stored(&event)));
            }
            let reply = sent.join().unwrap();
            assert_eq!(reply.contains("100 Continue"), asks, "{reply}");
            assert!(reply.contains("HTTP/1.1 201"), "{reply}");
        });
        assert_eq!(
            fs::read(api.path(&format!("spool/{MARK}/{NAME}"))).unwrap(),
            body
        );
    }
}

/// Whoever is refused is refused before a byte of the body was asked for.
#[test]
fn who_asks_first_is_told_before_sending() {
    let login = json!({ "webserver_username": "u", "webserver_password": "p" });
    for (config, path, status) in [
        (login, format!("/main/archive/{NAME}"), 401),
        (json!({}), "/main/archive/nonsense".to_owned(), 400),
        (json!({}), format!("/who/archive/{NAME}"), 404),
        (json!({}), "/status".to_owned(), 405),
    ] {
        let api = Api::new(config);
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\
             expect: 100-continue\r\nconnection: close\r\n\r\n"
        );
        let reply = talk(api.handle.address(), &[request.as_bytes()], false);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{reply}");
    }
}

/// Nothing that is not whole, or not what its name says, leaves anything behind.
#[test]
fn s16_a_body_that_is_not_whole_is_never_kept() {
    let api = Api::new(json!({}));
    let whole = wal(MIB);
    let length = |bytes: usize| format!("content-length: {bytes}\r\n");
    let chunk = |body: &[u8]| [format!("{:x}\r\n", MIB).as_bytes(), body].concat();
    for (what, more, body, status) in [
        (
            "gone in the middle",
            length(MIB),
            whole[..MIB / 2].to_vec(),
            "400",
        ),
        ("gone at once", length(MIB), Vec::new(), "400"),
        ("a length too small", length(MIB - 1), whole.clone(), "412"),
        (
            "a chunk too short",
            "transfer-encoding: chunked\r\n".into(),
            chunk(&whole[..9]),
            "400",
        ),
        (
            "no last chunk",
            "transfer-encoding: chunked\r\n".into(),
            chunk(&whole),
            "400",
        ),
        (
            "no chunks",
            "transfer-encoding: chunked\r\n".into(),
            b"zz\r\n".to_vec(),
            "400",
        ),
        (
            "too long",
            length(MIB + 1),
            [&whole[..], b"x"].concat(),
            "412",
        ),
        ("garbage", length(MIB), vec![0xFF; MIB], "412"),
        (
            "two lengths",
            length(5) + &length(6),
            b"12345".to_vec(),
            "400",
        ),
        (
            "a negative length",
            "content-length: -1\r\n".into(),
            Vec::new(),
            "400",
        ),
        ("more than any", length(2 << 30), Vec::new(), "413"),
    ] {
        let reply = cut(api.handle.address(), &[head(&more).as_bytes(), &body]);
        // A connection that broke may be closed without an answer.
        let told = reply.split(' ').nth(1).unwrap_or(status);
        assert_eq!(told, status, "{what}: {reply}");
        eventually(what, || {
            fs::read_dir(api.path(&format!("spool/{MARK}")))
                .unwrap()
                .count()
                == 0
        });
        assert!(api.reports.try_recv().is_err(), "{what}");
    }
    assert_eq!(api.ask("GET", "/status", "").0, 200);
}

/// A body of another size than its first page says is not taken to its end.
#[test]
fn a_segment_is_no_longer_than_its_first_page_says() {
    let api = Api::new(json!({}));
    let mut body = wal(MIB);
    body.resize(3 * MIB, 0);
    let more = format!("content-length: {}\r\n", body.len());
    let reply = talk(
        api.handle.address(),
        &[head(&more).as_bytes(), &body],
        false,
    );
    assert!(reply.contains("412"), "{reply}");
    assert!(
        reply.contains("larger than the 1048576 bytes of its segment"),
        "{reply}"
    );
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    let api = Api::new(json!({}));
    let one = "GET /status HTTP/1.1\r\nhost: x\r\n\r\n";
    let small = "PUT /main/hold HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    let last = "GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let all = [one, small, one, last].concat();
    let reply = talk(api.handle.address(), &[all.as_bytes()], false);
    let statuses: Vec<&str> = reply
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &reply[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "400", "200", "200"], "{reply}");
}
