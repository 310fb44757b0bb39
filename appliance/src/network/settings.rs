//! The `network` object of the settings, read once into checked types.
//!
//! ```json
//! { "interfaces": { "eth0": { "addresses": ["10.0.0.5/24", "ra"], "gateways": ["10.0.0.1"],
//!                             "mtu": 1500 } },
//!   "dns": ["10.0.0.2"], "search": ["example.net"] }
//! ```
//!
//! Without `interfaces` every Ethernet interface asks by DHCP and listens to routers. With it only
//! those named, by name or by MAC, are used. `dns` and `search`, if given, replace what DHCP says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use machine::Class;
use pghoard::{Failure, Outcome};
use serde::Deserialize;
use serde_json::Value;

use super::link::Address;
use super::names::is_domain;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// None: every Ethernet interface, by DHCP and router advertisements.
    pub interfaces: Option<Vec<(Name, Interface)>>,
    pub dns: Vec<IpAddr>,
    pub search: Vec<String>,
}

/// How an interface is named: each is tried in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Kernel(String),
    Mac(Mac),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub dhcp: bool,
    /// IPv6 by the kernel: router advertisements and the addresses made of them.
    pub ra: bool,
    pub addresses: Vec<Address>,
    pub gateways: Vec<IpAddr>,
    pub mtu: Option<u32>,
}

impl Default for Interface {
    fn default() -> Interface {
        Interface {
            dhcp: true,
            ra: true,
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    interfaces: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    dns: Vec<String>,
    #[serde(default)]
    search: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    addresses: Option<Vec<String>>,
    #[serde(default)]
    gateways: Vec<String>,
    mtu: Option<u32>,
}

const KEY: &str = "appliance.network";

impl Settings {
    /// Null, which an absent key is, means the defaults.
    pub fn parse(value: &Value) -> Outcome<Settings> {
        if value.is_null() {
            return Ok(Settings::default());
        }
        let document = Document::deserialize(value).map_err(|error| wrong(KEY, error))?;
        let interfaces = document.interfaces.map(interfaces).transpose()?;
        let dns = parse_all(&document.dns, &format!("{KEY}.dns"), "an IP address")?;
        for domain in &document.search {
            if !is_domain(domain) {
                let key = format!("{KEY}.search");
                return Err(wrong(&key, format!("'{domain}' is not a domain name")));
            }
        }
        Ok(Settings {
            interfaces,
            dns,
            search: document.search,
        })
    }

    /// What is wanted of an interface; None leaves it alone.
    pub fn of(&self, name: &str, mac: Option<Mac>) -> Option<Interface> {
        let Some(interfaces) = &self.interfaces else {
            return Some(Interface::default());
        };
        let by_name = |key: &Name| *key == Name::Kernel(name.to_owned());
        let by_mac = |key: &Name| mac.is_some_and(|mac| *key == Name::Mac(mac));
        let find = |is: &dyn Fn(&Name) -> bool| interfaces.iter().find(|(key, _)| is(key));
        let (_, found) = find(&by_name).or_else(|| find(&by_mac))?;
        Some(found.clone())
    }
}

fn interfaces(entries: BTreeMap<String, Value>) -> Outcome<Vec<(Name, Interface)>> {
    let mut taken = BTreeSet::new();
    let mut found: Vec<(Name, Interface)> = Vec::new();
    for (word, entry) in entries {
        let key = format!("{KEY}.interfaces.{word}");
        let name = Name::parse(&word).map_err(|failure| failure.about(&key))?;
        if found.iter().any(|(known, _)| *known == name) {
            return Err(wrong(&key, "the interface is named twice"));
        }
        let interface = interface(&key, entry)?;
        for address in &interface.addresses {
            if !taken.insert(address.ip) {
                let message = format!("{} is the address of two interfaces", address.ip);
                return Err(wrong(&format!("{key}.addresses"), message));
            }
        }
        found.push((name, interface));
    }
    Ok(found)
}

fn interface(key: &str, entry: Value) -> Outcome<Interface> {
    let entry = Entry::deserialize(entry).map_err(|error| wrong(key, error))?;
    let mut interface = Interface {
        mtu: entry.mtu,
        ..Interface::default()
    };
    if let Some(words) = entry.addresses {
        let key = format!("{key}.addresses");
        if words.is_empty() {
            let failure = wrong(&key, "no address at all");
            return Err(failure.hint("leave the interface out, or name dhcp, ra or an address"));
        }
        interface.dhcp = words.iter().any(|word| word == "dhcp");
        interface.ra = words.iter().any(|word| word == "ra");
        let mut fixed: Vec<String> = words;
        fixed.retain(|word| word != "dhcp" && word != "ra");
        let expected = "an address like 10.0.0.5/24 or fd00::5/64, nor dhcp or ra";
        interface.addresses = parse_all(&fixed, &key, expected)?;
    }
    let gateways = format!("{key}.gateways");
    interface.gateways = parse_all(&entry.gateways, &gateways, "an IP address")?;
    for (number, gateway) in interface.gateways.iter().enumerate() {
        let kind = gateway.is_ipv4();
        let before = interface.gateways.iter().take(number);
        if before.filter(|other| other.is_ipv4() == kind).count() > 0 {
            return Err(wrong(
                &gateways,
                "one of each kind is expected, IPv4 and IPv6",
            ));
        }
        let by_itself = if kind { interface.dhcp } else { interface.ra };
        if !by_itself && !interface.addresses.iter().any(|a| a.ip.is_ipv4() == kind) {
            let message = format!("{gateway} cannot be reached: no address of its kind is given");
            return Err(wrong(&gateways, message));
        }
    }
    let has_ipv6 = interface.ra || interface.addresses.iter().any(|a| a.ip.is_ipv6());
    let least = if has_ipv6 { MTU_IPV6 } else { MTU_IPV4 };
    match interface.mtu {
        Some(mtu) if !(least..=MTU_MAX).contains(&mtu) => {
            let message = format!("{mtu} is not between {least} and {MTU_MAX}");
            Err(wrong(&format!("{key}.mtu"), message))
        }
        Some(_) | None => Ok(interface),
    }
}

/// RFC 8200 section 5 and RFC 791; above is what no Ethernet carries.
const MTU_IPV6: u32 = 1280;
const MTU_IPV4: u32 = 576;
const MTU_MAX: u32 = 65_535;

impl Name {
    fn parse(word: &str) -> Outcome<Name> {
        if let Ok(mac) = word.parse() {
            return Ok(Name::Mac(mac));
        }
        let good = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        // Linux include/uapi/linux/if.h: IFNAMSIZ with its zero.
        match !word.is_empty() && word.len() < 16 && word.chars().all(good) {
            true => Ok(Name::Kernel(word.to_owned())),
            false => {
                let message = "expected a name like eth0, or a MAC like 52:54:00:12:34:56";
                Err(Failure::new(Class::Config, message))
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Kernel(name) => f.write_str(name),
            Name::Mac(mac) => mac.fmt(f),
        }
    }
}

impl FromStr for Mac {
    type Err = ();

    fn from_str(word: &str) -> Result<Mac, ()> {
        let mut bytes = [0; 6];
        let mut parts = word.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_no_number| ())?;
        }
        match parts.next() {
            Some(_) => Err(()),
            None => Ok(Mac(bytes)),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&parts.join(":"))
    }
}

fn parse_all<T: FromStr>(words: &[String], key: &str, expected: &str) -> Outcome<Vec<T>> {
    let one = |word: &String| {
        let message = format!("'{word}' is not {expected}");
        word.parse().map_err(|_| wrong(key, message))
    };
    words.iter().map(one).collect()
}

fn wrong(key: &str, message: impl fmt::Display) -> Failure {
    Failure::new(Class::Config, format!("{key}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        let value: Value = serde_json::from_str(text).unwrap();
        Settings::parse(&value).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_absent_has_its_default() {
        for text in ["null", "{}"] {
            let settings = parse(text).unwrap();
            assert_eq!(settings.of("eth7", None), Some(Interface::default()));
            assert!(settings.dns.is_empty() && settings.search.is_empty());
        }
        let settings = parse(r#"{"interfaces": {"eth0": {"mtu": 9000}}}"#).unwrap();
        let wanted = Interface {
            mtu: Some(9000),
            ..Interface::default()
        };
        assert_eq!(settings.of("eth0", None), Some(wanted));
        assert_eq!(settings.of("eth1", None), None);
    }

    #[test]
    fn an_interface_is_found_by_name_before_mac() {
        let text = r#"{"interfaces": {"52:54:00:aB:00:01": {"addresses": ["ra"]},
            "eth1": {"addresses": ["10.1.0.2/16", "fd00::2/64"], "gateways": ["10.1.0.1"]}}}"#;
        let settings = parse(text).unwrap();
        let mac = "52:54:00:ab:00:01".parse().ok();
        let by_mac = settings.of("eth0", mac).unwrap();
        assert!(by_mac.ra && !by_mac.dhcp);
        let by_name = settings.of("eth1", mac).unwrap();
        assert!(!by_name.ra && !by_name.dhcp);
        assert_eq!(
            by_name.addresses,
            ["10.1.0.2/16", "fd00::2/64"].map(|a| a.parse().unwrap())
        );
    }

    /// A document, or what is inside of the interface eth0; and what is said of it.
    const WRONG: &[(&str, &str)] = &[
        (r#"{"dsn": []}"#, "appliance.network: unknown field `dsn`"),
        (
            r#"{"dns": ["ns1"]}"#,
            "appliance.network.dns: 'ns1' is not an IP address",
        ),
        (
            r#"{"search": ["a b"]}"#,
            "appliance.network.search: 'a b' is not a domain name",
        ),
        (
            r#"{"interfaces": {"e/0": {}}}"#,
            "interfaces.e/0: expected a name like eth0",
        ),
        (r#"{"interfaces": {"": {}}}"#, "expected a name like eth0"),
        (r#"{"interfaces": {"52:54:0:0:0:1": {}}}"#, "or a MAC like"),
        (r#"{"interfaces": []}"#, "appliance.network: invalid type"),
        (
            r#""adresses": []"#,
            "appliance.network.interfaces.eth0: unknown field",
        ),
        (
            r#""addresses": []"#,
            "eth0.addresses: no address at all; hint: leave",
        ),
        (
            r#""addresses": ["10.0.0.5"]"#,
            "'10.0.0.5' is not an address like 10.0.0.5/24",
        ),
        (
            r#""addresses": ["10.0.0.5/33"]"#,
            "'10.0.0.5/33' is not an address",
        ),
        (
            r#""addresses": ["fd00::/129"]"#,
            "'fd00::/129' is not an address",
        ),
        (
            r#""addresses": ["224.0.0.1/4"]"#,
            "'224.0.0.1/4' is not an address",
        ),
        (r#""addresses": ["dhpc"]"#, "'dhpc' is not an address like"),
        (
            r#""gateways": ["10.0.0"]"#,
            "eth0.gateways: '10.0.0' is not an IP address",
        ),
        (
            r#""addresses": ["ra"], "gateways": ["10.0.0.1"]"#,
            "eth0.gateways: 10.0.0.1 cannot be reached",
        ),
        (
            r#""addresses": ["10.0.0.5/24"], "gateways": ["fd00::1"]"#,
            "eth0.gateways: fd00::1 cannot be reached",
        ),
        (
            r#""gateways": ["10.0.0.1", "fd00::1", "10.0.0.2"]"#,
            "eth0.gateways: one of each kind is expected",
        ),
        (
            r#""mtu": 100"#,
            "eth0.mtu: 100 is not between 1280 and 65535",
        ),
        (
            r#""addresses": ["dhcp"], "mtu": 100"#,
            "eth0.mtu: 100 is not between 576 and 65535",
        ),
        (r#""mtu": -1"#, "eth0: invalid value"),
        (
            r#"{"interfaces": {"eth0": {"addresses": ["10.0.0.5/24"]},
                "eth1": {"addresses": ["10.0.0.5/16"]}}}"#,
            "eth1.addresses: 10.0.0.5 is the address of two interfaces",
        ),
        (
            r#"{"interfaces": {"52:54:00:AB:00:01": {}, "52:54:00:ab:00:01": {}}}"#,
            "the interface is named twice",
        ),
    ];

    #[test]
    fn whatever_is_wrong_is_named_with_its_key() {
        for (text, expected) in WRONG {
            let whole = match text.starts_with('{') {
                true => (*text).to_owned(),
                false => format!(r#"{{"interfaces": {{"eth0": {{{text}}}}}}}"#),
            };
            let message = parse(&whole).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
