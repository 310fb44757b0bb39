//! The fault proxy itself, between curl and a server that tells what it got.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::faults::tcp::{Passed, TcpFault, TcpProxy, Way};
use crate::support::faults::{Answer, Fault, Pick, Proxy};
use crate::support::http::{Endpoint, respond};
use crate::support::stores::{Reply, curl};

const TEN: &str = "0123456789";

/// Remembers the bodies that it got and answers ten bytes.
fn server() -> (Endpoint, Arc<Mutex<Vec<String>>>) {
    let got = Arc::<Mutex<Vec<String>>>::default();
    let own = Arc::clone(&got);
    let endpoint = Endpoint::start(move |request| {
        let body = String::from_utf8_lossy(request.body()).into_owned();
        own.lock().unwrap().push(body);
        let place = format!("http://{}/x", request.headers()["host"].to_str().unwrap());
        respond(200, &[("Location", &place), ("ETag", "\"e\"")], TEN)
    });
    (endpoint, got)
}

/// A request that carries ten bytes, with the fault.
fn put(fault: Fault) -> (Reply, Vec<String>, Proxy) {
    let (server, got) = server();
    let proxy = Proxy::to(server.port);
    proxy.plan(Pick::Nth(0), fault);
    let url = format!("http://127.0.0.1:{}/a?b=c", proxy.port);
    let reply = curl(&["-X", "PUT", "-d", TEN, "--max-time", "1", &url]);
    let got = got.lock().unwrap().clone();
    assert_eq!(proxy.pending(), 0);
    (reply, got, proxy)
}

fn told(fault: Fault) -> (u16, String, i32, Vec<String>) {
    let (reply, got, _) = put(fault);
    (reply.status, reply.text(), reply.exit, got)
}

fn all() -> Vec<String> {
    vec![TEN.to_owned()]
}

#[test]
fn what_has_no_fault_passes_and_is_counted() {
    let (server, got) = server();
    let proxy = Proxy::to(server.port);
    let url = format!("http://127.0.0.1:{}/a?b=c", proxy.port);
    let chunked = ["-H", "Transfer-Encoding: chunked"];
    let invited = ["-H", "Expect: 100-continue"];
    for headers in [&[][..], &chunked, &invited] {
        let reply = curl(&[headers, &["-X", "PUT", "-d", TEN, &url]].concat());
        assert_eq!(
            (reply.status, reply.text().as_str(), reply.exit),
            (200, TEN, 0)
        );
    }
    assert_eq!(curl(&["-I", &url]).exit, 0);
    assert_eq!(*got.lock().unwrap(), [TEN, TEN, TEN, ""]);
    let seen = proxy.seen();
    assert_eq!(seen.len(), 4);
    assert_eq!(
        (seen[0].method.as_str(), seen[0].path.as_str()),
        ("PUT", "/a?b=c")
    );
    assert_eq!((seen[1].request_bytes, seen[1].response_bytes), (10, 10));
    assert_eq!((seen[3].method.as_str(), seen[3].status), ("HEAD", 200));
    proxy.clear();
    assert!(proxy.seen().is_empty());
}

#[test]
fn connections_are_refused_for_a_while() {
    let (reply, got, proxy) = put(Fault::Refused(Duration::from_secs(3600)));
    assert!(matches!(reply.exit, 52 | 55 | 56), "{reply:?}");
    assert!(got.is_empty());
    let url = format!("http://127.0.0.1:{}/", proxy.port);
    assert_eq!(curl(&[&url]).exit, 7);
    proxy.up();
    assert_ne!(curl(&["--max-time", "1", &url]).exit, 7);
    proxy.down();
    assert_eq!(curl(&[&url]).exit, 7);
}

#[test]
fn connections_are_reset_at_every_place() {
    for (fault, sent, status) in [
        (Fault::ResetBefore, vec![], 0),
        (Fault::ResetInRequest, vec![], 0),
        (Fault::ResetAfterRequest, all(), 0),
        (Fault::ResetInResponse, all(), 200),
    ] {
        let (told, body, exit, got) = told(fault.clone());
        assert!(matches!(exit, 52 | 55 | 56), "{fault:?}: {exit}");
        assert_eq!((told, got), (status, sent), "{fault:?}");
        assert!(body.len() <= 5, "{fault:?}: {body}");
    }
    assert_eq!(
        told(Fault::EndsInResponse),
        (200, "01234".into(), 18, all())
    );
}

#[test]
fn silence_lasts_until_the_client_gives_up() {
    assert_eq!(told(Fault::Stall), (0, String::new(), 28, vec![]));
    assert_eq!(
        told(Fault::StallInResponse),
        (200, "01234".into(), 28, all())
    );
}

#[test]
fn answers_are_given_instead_of_the_servers() {
    let (status, body, exit, got) = told(Fault::Answer(Answer::slow_down(7)));
    assert_eq!((status, exit, got), (503, 0, vec![]));
    assert!(body.contains("<Code>SlowDown</Code>"), "{body}");
    let (status, body, ..) = told(Fault::Answer(Answer::expired_token()));
    assert!(status == 403 && body.contains("<Code>ExpiredToken</Code>"));
    let done = told(Fault::DoneBut(Answer::status(500)));
    assert_eq!(done, (500, String::new(), 0, all()));
}

#[test]
fn bodies_change_on_the_way() {
    assert_eq!(told(Fault::Truncated), (200, "01234".into(), 0, all()));
    let (.., body, exit, got) = told(Fault::Lengthened);
    assert_eq!((body.len(), exit, got), (1010, 0, all()));
    let flipped = "01234%6789".to_owned();
    assert_eq!(
        told(Fault::FlippedResponse),
        (200, flipped.clone(), 0, all())
    );
    assert_eq!(
        told(Fault::FlippedRequest),
        (200, TEN.into(), 0, vec![flipped])
    );
}

#[test]
fn requests_are_picked_by_pattern_as_often_as_wanted() {
    let (server, _) = server();
    let proxy = Proxy::to(server.port);
    let pick = Pick::line("^GET /b.*list");
    proxy.plan_times(pick, 2, Fault::Answer(Answer::status(500)));
    let get = |path: &str| curl(&[&format!("http://127.0.0.1:{}{path}", proxy.port)]).status;
    let told = ["/a?list", "/b?list", "/b", "/b/c?list", "/b?list"].map(get);
    assert_eq!(told, [200, 500, 200, 500, 200]);
    let seen = proxy.seen();
    assert!(seen[1].fault.is_some() && seen[2].fault.is_none());
}

#[test]
fn an_earlier_answer_comes_again() {
    let count = Arc::new(Mutex::new(0));
    let server = Endpoint::start(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        respond(200, &[], count.to_string())
    });
    let proxy = Proxy::to(server.port);
    proxy.remember("list");
    proxy.plan(Pick::Nth(2), Fault::Stale);
    let get = || curl(&[&format!("http://127.0.0.1:{}/?list", proxy.port)]).text();
    assert_eq!([get(), get(), get(), get()], ["1", "2", "1", "4"]);
}

#[test]
fn who_may_not_enter_is_told_so() {
    let (server, got) = server();
    let guard = |login: &str| login == "Bearer good";
    let proxy = Proxy::guarded(server.port, Some(Box::new(guard)));
    let url = format!("http://127.0.0.1:{}/", proxy.port);
    assert_eq!(curl(&["-d", TEN, &url]).status, 401);
    assert_eq!(
        curl(&["-H", "Authorization: Bearer good", &url]).status,
        200
    );
    assert_eq!(*got.lock().unwrap(), [""]);
}

#[test]
fn bytes_of_any_protocol_are_cut_and_changed() {
    let (server, _) = server();
    let proxy = TcpProxy::to(server.port);
    let url = format!("http://127.0.0.1:{}/", proxy.port);
    let get = || curl(&["--http1.0", "--max-time", "1", &url]);
    assert_eq!(get().text(), TEN);
    let Passed {
        to_server,
        to_client,
    } = proxy.passed()[0];
    assert!(to_server > 0 && to_client > 0);
    let faults = [
        (TcpFault::Reset(Way::ToServer, 3), vec![52, 55, 56]),
        (TcpFault::Reset(Way::ToClient, to_client - 5), vec![18, 56]),
        (TcpFault::Stall(Way::ToClient, to_client - 5), vec![28]),
        (TcpFault::Flip(Way::ToClient, to_client - 1), vec![0]),
        (
            TcpFault::Refused(Duration::from_secs(3600)),
            vec![52, 55, 56],
        ),
    ];
    for (number, (fault, exits)) in (1..).zip(faults) {
        proxy.plan(number, fault);
        let reply = get();
        assert!(exits.contains(&reply.exit), "{fault:?}: {reply:?}");
        if reply.exit == 0 {
            assert_eq!(reply.text(), "012345678)");
        }
    }
    assert_eq!(get().exit, 7);
    proxy.up();
    assert_eq!(get().exit, 0);
}
