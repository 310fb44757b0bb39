//! Proxies that want a user and a password: microsocks for SOCKS5, tinyproxy for HTTP.

use serde_json::{Value, json};

use super::{installed, wait_ready};
use crate::support::postgres::free_port;
use crate::support::process::{Process, Scratch, command};

const USER: &str = "proxyuser";
const PASSWORD: &str = "proxypass";

pub struct Proxy {
    kind: &'static str,
    pub port: u16,
    process: Process,
    _scratch: Scratch,
}

impl Proxy {
    /// `None` has been said aloud as a skip.
    pub fn socks5() -> Option<Proxy> {
        let program = installed("microsocks", "services/usr/bin/microsocks")?;
        let (scratch, port) = (Scratch::new(), free_port());
        let mut socks = command(program, scratch.path());
        socks.args(["-i", "127.0.0.1", "-u", USER, "-P", PASSWORD, "-p"]);
        socks.arg(port.to_string());
        Some(Proxy::up("socks5", port, socks, scratch))
    }

    /// `None` has been said aloud as a skip. Plain requests and CONNECT.
    pub fn http() -> Option<Proxy> {
        let program = installed("tinyproxy", "services/usr/bin/tinyproxy")?;
        let (scratch, port) = (Scratch::new(), free_port());
        let config = scratch.file(
            "tinyproxy.conf",
            &format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 100\nAllow 127.0.0.1\n\
                 BasicAuth {USER} {PASSWORD}\nLogLevel Connect\n"
            ),
        );
        let mut http = command(program, scratch.path());
        http.args(["-d", "-c"]).arg(config);
        Some(Proxy::up("http", port, http, scratch))
    }

    fn up(
        kind: &'static str,
        port: u16,
        program: std::process::Command,
        scratch: Scratch,
    ) -> Proxy {
        let mut process = Process::spawn(program, scratch.join("proxy.log"));
        wait_ready(&mut process, kind, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Proxy {
            kind,
            port,
            process,
            _scratch: scratch,
        }
    }

    /// `proxy_info` of PGHoard's configuration.
    pub fn info(&self) -> Value {
        json!({
            "type": self.kind,
            "host": "127.0.0.1",
            "port": self.port,
            "user": USER,
            "pass": PASSWORD,
        })
    }

    /// As curl takes it; names are resolved by the proxy.
    pub fn url(&self, password: &str) -> String {
        let scheme = if self.kind == "socks5" {
            "socks5h"
        } else {
            "http"
        };
        format!("{scheme}://{USER}:{password}@127.0.0.1:{}", self.port)
    }

    pub fn right_url(&self) -> String {
        self.url(PASSWORD)
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }
}
