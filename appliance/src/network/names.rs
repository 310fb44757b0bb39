//! Name servers: what is written into `resolv.conf` (resolv.conf(5)).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use pghoard::{Outcome, durable};

/// What the C library heeds (`MAXNS` of resolv.h); the rest would only seem to be asked.
const SERVERS_MAX: usize = 3;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
}

impl Names {
    /// Those of the settings, else those of the leases, each once.
    pub fn new<'a>(
        named: (&[IpAddr], &[String]),
        leased: impl Iterator<Item = (&'a [IpAddr], &'a [String])>,
    ) -> Names {
        let mut names = Names {
            servers: once(named.0),
            search: once(named.1),
        };
        let (mut servers, mut search) = (Vec::new(), Vec::new());
        for (ips, domains) in leased {
            servers.extend_from_slice(ips);
            search.extend_from_slice(domains);
        }
        if names.servers.is_empty() {
            names.servers = once(&servers);
        }
        if names.search.is_empty() {
            names.search = once(&search);
        }
        names.servers.truncate(SERVERS_MAX);
        names
    }

    /// Whoever reads the file meanwhile sees the old one or the new one.
    pub fn write(&self, path: &Path) -> Outcome<()> {
        let text = self.text();
        match fs::read_to_string(path) {
            Ok(has) if has == text => Ok(()),
            Ok(_) | Err(_) => durable::write(path, text.as_bytes()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        text
    }
}

/// RFC 1035 section 2.3.4, and nothing that means more than itself in a file of words and lines.
pub fn is_domain(word: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && word.len() <= 253 && word.chars().all(good)
}

fn once<T: Clone + PartialEq>(of: &[T]) -> Vec<T> {
    let mut found: Vec<T> = Vec::new();
    for one in of {
        if !found.contains(one) {
            found.push(one.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_come_before_the_leases_and_each_name_once() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let domain = ["a.example".to_owned()];
        let leases = [
            (vec![ip(1), ip(2)], domain.to_vec()),
            (vec![ip(2), ip(3), ip(4)], vec![]),
        ];
        let leased = || {
            leases
                .iter()
                .map(|(ips, names)| (ips.as_slice(), names.as_slice()))
        };
        let names = Names::new((&[], &[]), leased());
        let expected = "search a.example\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n\
                        nameserver 10.0.0.3\n";
        assert_eq!(names.text(), expected);
        let own = ["b.example".to_owned()];
        let names = Names::new((&[ip(9)], &own), leased());
        assert_eq!(names.text(), "search b.example\nnameserver 10.0.0.9\n");
        assert_eq!(Names::default().text(), "");
    }

    #[test]
    fn the_file_is_written_when_it_differs() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("resolv.conf");
        let names = Names {
            servers: vec![IpAddr::from([10, 0, 0, 1])],
            search: Vec::new(),
        };
        for _ in 0..2 {
            names.write(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
        }
        Names::default().write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
