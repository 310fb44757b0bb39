//! Power and updates, asked of a process 1 that is this test.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;

use super::*;

/// Asks, commits what comes to the log, and answers at the control socket what it is told to. Gives
/// status, body and what the socket was asked.
fn ask(api: &Api, path: &str, headers: &str, body: &[u8], answer: &str) -> (u16, String, Value) {
    let socket = api.path("control");
    let _before = fs::remove_file(&socket);
    let control = UnixListener::bind(&socket).unwrap();
    control.set_nonblocking(true).unwrap();
    let (address, body) = (api.handle.address(), body.to_vec());
    let length = format!("{headers}content-length: {}", body.len());
    let request =
        format!("PUT {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{length}\r\n\r\n");
    let asked = thread::spawn(move || raw(address, request.as_bytes(), &body));
    let mut heard = Value::Null;
    while !asked.is_finished() {
        if let Ok(report) = api.reports.recv_timeout(Duration::from_millis(5)) {
            report.heard.unwrap().send(()).unwrap();
        }
        if let Ok((mut stream, _)) = control.accept() {
            stream.set_nonblocking(false).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            heard = serde_json::from_str(&line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    }
    let reply = asked.join().unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned(), heard)
}

fn names(folder: &str) -> Vec<String> {
    let items = fs::read_dir(folder).unwrap();
    let names = items.map(|item| item.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn power_is_asked_of_process_1() {
    let api = Api::new(json!({}));
    let reboot = json!({ "how": "reboot", "by": "anna" });
    for (body, answer, status, words, how) in [
        (
            &reboot,
            "{\"ok\": {\"in_seconds\": 1}}\n",
            200,
            "in_seconds",
            Some("reboot"),
        ),
        (
            &reboot,
            "{\"error\": \"an update is being applied\"}\n",
            409,
            "an update is",
            Some("reboot"),
        ),
        (
            &reboot,
            "nonsense\n",
            503,
            "no answer that means",
            Some("reboot"),
        ),
        (
            &json!({ "how": "sleep" }),
            "",
            400,
            "no JSON of a power",
            None,
        ),
    ] {
        let body = body.to_string();
        let (got, text, heard) = ask(&api, "/appliance/power", "", body.as_bytes(), answer);
        assert_eq!((got, heard["how"].as_str()), (status, how), "{text}");
        assert!(text.contains(words), "{text}");
        if how.is_some() {
            assert_eq!(
                (&heard["do"], &heard["who"]),
                (&json!("power"), &json!("http anna"))
            );
        }
    }
}

#[test]
fn an_update_is_whole_on_disk_before_process_1_hears_of_it() {
    let api = Api::new(json!({}));
    let folder = api.path("updates");
    fs::create_dir(&folder).unwrap();
    fs::write(format!("{folder}/.draft-1-1.tmp"), "of a crash").unwrap();
    let bundle = vec![7; 300_000];
    let path = "/appliance/update";
    let by = "x-pghoard-by: anna\r\n";
    let (status, text, heard) = ask(&api, path, by, &bundle, "{\"ok\": \"0.2.0\"}\n");
    assert_eq!((status, text.as_str()), (200, "\"0.2.0\""));
    assert_eq!(
        (&heard["do"], &heard["who"]),
        (&json!("update"), &json!("http anna"))
    );
    let place = heard["path"].as_str().unwrap();
    assert_eq!(fs::read(place).unwrap(), bundle);
    assert_eq!(names(&folder), ["upload.bundle"]);

    let refusal = "{\"error\": \"the signature is not one of ours\"}\n";
    let (status, text, _) = ask(&api, path, "", b"bad", refusal);
    assert_eq!(
        (status, text.as_str()),
        (409, "the signature is not one of ours")
    );
    assert!(names(&folder).is_empty());
    let (status, _, heard) = ask(&api, path, "", b"", "");
    assert_eq!((status, heard), (400, Value::Null));
}

#[test]
fn an_update_that_is_cut_off_or_too_large_leaves_nothing() {
    let api = Api::new(json!({}));
    let folder = api.path("updates");
    fs::create_dir(&folder).unwrap();
    let head = |length: u64| {
        format!(
            "PUT /appliance/update HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        )
    };
    let announced = head((256 << 20) + 1).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    let reply = raw(api.handle.address(), announced.as_bytes(), b"");
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    let mut stream = TcpStream::connect(api.handle.address()).unwrap();
    stream.write_all(head(9).as_bytes()).unwrap();
    stream.write_all(b"four").unwrap();
    eventually("the draft", || !names(&folder).is_empty());
    // Meanwhile nobody else may.
    let reply = raw(api.handle.address(), head(4).as_bytes(), b"four");
    assert!(reply.contains("another update is on its way"), "{reply}");
    drop(stream);
    eventually("the draft to go", || names(&folder).is_empty());
}
