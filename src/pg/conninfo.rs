//! What to connect to and as whom, from any of the forms PGHoard's users write: a libpq string, a
//! URI, a dictionary, or a dictionary with `connection_string` and `slot`.
//!
//! Keywords and defaults are libpq's, environment variables included. A keyword libpq knows and we
//! do not obey is passed over when that is harmless and refused when it would weaken what the user
//! asked for; one that nobody knows is refused by name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use machine::Class;
use serde_json::Value;

use super::conntext::{self, Pairs};
use super::passfile::{self, Lookup, Password, Wanted};
use crate::failure::{Failure, Outcome};
use crate::tls::Roots;

const PORT: u16 = 5432;

/// Names under which other clusters, and people reading pg_stat_replication, know us.
const APPLICATION_NAME: &str = "pghoard";

/// More hosts than any failover set has.
const HOSTS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conninfo {
    /// Tried in order; never empty.
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: Option<Password>,
    pub passfile: Option<PathBuf>,
    pub dbname: String,
    pub sslmode: SslMode,
    pub sslrootcert: Option<Roots>,
    /// Client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub channel_binding: ChannelBinding,
    pub application_name: String,
    pub options: Option<String>,
    /// For each host; unset waits as long as the caller's deadline allows.
    pub connect_timeout: Option<Duration>,
    pub target: Target,
    /// PGHoard's: the physical replication slot to stream through.
    pub slot: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub place: Place,
    /// The name certificates and password files know it by.
    pub name: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The directory of a unix socket.
    Socket(PathBuf),
    /// A name or an address.
    Network(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// `target_session_attrs`, as far as start-up alone can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Any,
    Primary,
    Standby,
}

/// What a process brings along when a connection string is silent.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    pub variables: BTreeMap<String, String>,
    pub home: Option<PathBuf>,
    pub user: Option<String>,
}

/// Where a server built by a distribution, and one built from source, put their socket.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const VARIABLES: [(&str, &str); 15] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("dbname", "PGDATABASE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
];

/// Keywords that may stand there without effect: what they tune we do in our own way.
const HARMLESS: [&str; 16] = [
    "client_encoding",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "replication",
    "requiressl",
    "sslcompression",
    "sslsni",
    "ssl_min_protocol_version",
    "tcp_user_timeout",
    "tty",
];

/// Keywords that ask for something we do not give.
const UNSERVED: [&str; 11] = [
    "gssdelegation",
    "min_protocol_version",
    "max_protocol_version",
    "require_auth",
    "requirepeer",
    "service",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "sslpassword",
    "ssl_max_protocol_version",
];

impl Defaults {
    pub fn of_process() -> Defaults {
        let account = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()
            .flatten();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        Defaults {
            variables: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .filter(|(k, _)| k.starts_with("PG"))
                .collect(),
            home: home.or_else(|| account.as_ref().map(|a| a.dir.clone())),
            user: account.map(|a| a.name),
        }
    }

    /// A file of the user's `~/.postgresql`, if it is there.
    fn own(&self, name: &str) -> Option<PathBuf> {
        let path = self.home.as_ref()?.join(".postgresql").join(name);
        path.exists().then_some(path)
    }
}

impl Conninfo {
    /// A libpq string or a URI.
    pub fn from_text(text: &str, defaults: &Defaults) -> Outcome<Conninfo> {
        Conninfo::from_pairs(conntext::pairs(text)?, defaults)
    }

    pub fn from_map(map: &BTreeMap<String, Value>, defaults: &Defaults) -> Outcome<Conninfo> {
        let mut pairs = Pairs::new();
        for (keyword, value) in map {
            match (keyword.as_str(), value) {
                (_, Value::Null) => {}
                ("connection_string", Value::String(text)) => pairs.extend(conntext::pairs(text)?),
                (_, Value::String(text)) => pairs.push((keyword.clone(), text.clone())),
                (_, Value::Number(number)) => pairs.push((keyword.clone(), number.to_string())),
                _ => {
                    let expected = format!("connection: '{keyword}' must be a string or a number");
                    return Err(Failure::new(Class::Config, expected));
                }
            }
        }
        Conninfo::from_pairs(pairs, defaults)
    }

    /// An entry of a site's `nodes`: a string or a dictionary.
    pub fn from_node(node: &Value, defaults: &Defaults) -> Outcome<Conninfo> {
        match node {
            Value::String(text) => Conninfo::from_text(text, defaults),
            Value::Object(map) => {
                let map = map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                Conninfo::from_map(&map, defaults)
            }
            _ => Err(Failure::new(
                Class::Config,
                "connection: expected a string or a dictionary",
            )),
        }
    }

    fn from_pairs(pairs: Pairs, defaults: &Defaults) -> Outcome<Conninfo> {
        let mut given = Given::new(pairs, defaults)?;
        let user = given
            .take("user")
            .or_else(|| defaults.user.clone())
            .ok_or_else(|| Failure::new(Class::Config, "connection: no user is given"))?;
        let sslrootcert = match given.take("sslrootcert") {
            Some(text) if text == "system" => Some(Roots::System),
            Some(text) => Some(Roots::File(text.into())),
            None => defaults.own("root.crt").map(Roots::File),
        };
        let sslcert = given.take("sslcert").map(PathBuf::from);
        let sslkey = given.take("sslkey").map(PathBuf::from);
        let identity = sslcert
            .or_else(|| defaults.own("postgresql.crt"))
            .zip(sslkey.or_else(|| defaults.own("postgresql.key")));
        let home_passfile = || defaults.home.as_ref().map(|home| home.join(".pgpass"));
        let conninfo = Conninfo {
            hosts: given.hosts()?,
            dbname: given.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: given.take("password").map(Password::new),
            passfile: given
                .take("passfile")
                .map(PathBuf::from)
                .or_else(home_passfile),
            sslmode: given.sslmode(sslrootcert.as_ref())?,
            sslrootcert,
            identity,
            channel_binding: given.one_of("channel_binding", ChannelBinding::Prefer, &BINDINGS)?,
            application_name: given
                .take("application_name")
                .or_else(|| given.take("fallback_application_name"))
                .unwrap_or_else(|| APPLICATION_NAME.to_owned()),
            options: given.take("options"),
            connect_timeout: given.connect_timeout()?,
            target: given.one_of("target_session_attrs", Target::Any, &TARGETS)?,
            slot: given.take("slot"),
        };
        given.take("fallback_application_name");
        given.end()?;
        Ok(conninfo)
    }

    /// The password for a host: given, or from the password file.
    pub fn password_for(&self, host: &Host, databases: &[&str]) -> Lookup {
        if let Some(password) = &self.password {
            return Lookup::Found(password.clone());
        }
        let name = host.name.as_str();
        let own = SOCKET_FOLDERS.map(Path::new);
        let hosts: &[&str] = match &host.place {
            Place::Socket(folder) if own.contains(&folder.as_path()) => &["localhost", name],
            Place::Socket(_) | Place::Network(_) => &[name],
        };
        let wanted = Wanted {
            hosts,
            port: host.port,
            databases,
            user: &self.user,
        };
        match &self.passfile {
            Some(path) => passfile::look_up(path, wanted),
            None => Lookup::Absent,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Network(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Network(name) => write!(f, "{name}:{}", self.port),
            Place::Socket(folder) => write!(f, "{}:{}", folder.display(), self.port),
        }
    }
}

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl SslMode {
    pub fn name(self) -> &'static str {
        let found = MODES.iter().find(|(_, mode)| *mode == self);
        found.map_or("", |(name, _)| name)
    }
}

const BINDINGS: [(&str, ChannelBinding); 3] = [
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

const TARGETS: [(&str, Target); 5] = [
    ("any", Target::Any),
    ("read-write", Target::Primary),
    ("primary", Target::Primary),
    ("read-only", Target::Standby),
    ("standby", Target::Standby),
];

/// The pairs, later ones over earlier ones, environment below both; each is taken once.
struct Given(BTreeMap<String, String>);

impl Given {
    fn new(pairs: Pairs, defaults: &Defaults) -> Outcome<Given> {
        let mut map = BTreeMap::new();
        for (keyword, variable) in VARIABLES {
            if let Some(value) = defaults.variables.get(variable) {
                map.insert(keyword.to_owned(), value.clone());
            }
        }
        for (keyword, value) in pairs {
            if UNSERVED.contains(&keyword.as_str()) {
                return Err(Failure::new(
                    Class::Config,
                    format!("connection: '{keyword}' is not supported"),
                )
                .hint("leave it out"));
            }
            if !HARMLESS.contains(&keyword.as_str()) {
                map.insert(keyword, value);
            }
        }
        Ok(Given(map))
    }

    /// Empty counts as not given, as in libpq.
    fn take(&mut self, keyword: &str) -> Option<String> {
        self.0.remove(keyword).filter(|value| !value.is_empty())
    }

    fn one_of<T: Copy>(&mut self, keyword: &str, default: T, table: &[(&str, T)]) -> Outcome<T> {
        let Some(value) = self.take(keyword) else {
            return Ok(default);
        };
        let found = table.iter().find(|(name, _)| *name == value);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
            Failure::new(
                Class::Config,
                format!(
                    "connection: {keyword}={value}: expected {}",
                    names.join(", ")
                ),
            )
        })
    }

    fn sslmode(&mut self, roots: Option<&Roots>) -> Outcome<SslMode> {
        let system = roots == Some(&Roots::System);
        let default = if system {
            SslMode::VerifyFull
        } else {
            SslMode::Prefer
        };
        let mode = self.one_of("sslmode", default, &MODES)?;
        if system && mode != SslMode::VerifyFull {
            return Err(Failure::new(
                Class::Config,
                "connection: sslrootcert=system needs sslmode=verify-full",
            ));
        }
        if matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) && roots.is_none() {
            return Err(Failure::new(
                Class::Config,
                "connection: sslmode=verify-ca and verify-full need sslrootcert",
            )
            .hint("give the file of the authority's certificate, or sslrootcert=system"));
        }
        Ok(mode)
    }

    fn connect_timeout(&mut self) -> Outcome<Option<Duration>> {
        let Some(text) = self.take("connect_timeout") else {
            return Ok(None);
        };
        match text.trim().parse::<i64>() {
            Ok(seconds) => Ok(u64::try_from(seconds)
                .ok()
                .filter(|s| *s > 0)
                .map(Duration::from_secs)),
            Err(_) => Err(Failure::new(
                Class::Config,
                format!("connection: connect_timeout={text}: expected a number of seconds"),
            )),
        }
    }

    fn hosts(&mut self) -> Outcome<Vec<Host>> {
        let list = |text: Option<String>| -> Vec<String> {
            text.map_or_else(Vec::new, |t| t.split(',').map(str::to_owned).collect())
        };
        let names = list(self.take("host"));
        let addresses = list(self.take("hostaddr"));
        let ports = list(self.take("port"));
        let count = names.len().max(addresses.len());
        let fits = |n: usize| n == 0 || n == count;
        let ports_fit = ports.len() <= 1 || ports.len() == count;
        if !fits(names.len()) || !fits(addresses.len()) || !ports_fit || count > HOSTS_MAX {
            return Err(Failure::new(
                Class::Config,
                format!(
                    "connection: host, hostaddr and port must be lists of one length, \
                         {HOSTS_MAX} at most"
                ),
            ));
        }
        let mut hosts = Vec::new();
        for at in 0..count.max(1) {
            let port = match ports.get(at).or(ports.first()).map(|p| p.trim()) {
                None | Some("") => PORT,
                Some(text) => text.parse().ok().filter(|p| *p > 0).ok_or_else(|| {
                    Failure::new(
                        Class::Config,
                        format!("connection: port={text}: expected a number from 1 to 65535"),
                    )
                })?,
            };
            let entry = |list: &[String]| list.get(at).filter(|t| !t.is_empty()).cloned();
            hosts.extend(places(entry(&names), entry(&addresses), port));
        }
        Ok(hosts)
    }

    fn end(mut self) -> Outcome<()> {
        match self.0.pop_first() {
            None => Ok(()),
            Some((keyword, _)) => {
                let message = format!("connection: unknown keyword '{keyword}'");
                let known = VARIABLES.iter().map(|(known, _)| *known);
                let known = known.chain(["slot", "target_session_attrs"]);
                Err(Failure::new(Class::Config, message).meant(&keyword, known))
            }
        }
    }
}

fn places(name: Option<String>, address: Option<String>, port: u16) -> Vec<Host> {
    let socket = |folder: &str| Host {
        place: Place::Socket(folder.into()),
        name: folder.to_owned(),
        port,
    };
    match (name, address) {
        (None, None) => SOCKET_FOLDERS.map(socket).into(),
        (Some(name), None) if name.starts_with('/') => vec![socket(&name)],
        (name, address) => {
            let target = address.or_else(|| name.clone()).unwrap_or_default();
            vec![Host {
                name: name.unwrap_or_else(|| target.clone()),
                place: Place::Network(target),
                port,
            }]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, variables: &[(&str, &str)]) -> Outcome<Conninfo> {
        let defaults = Defaults {
            variables: variables
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            home: None,
            user: Some("me".into()),
        };
        Conninfo::from_text(text, &defaults)
    }

    fn hosts(text: &str) -> String {
        let hosts = parsed(text, &[]).unwrap().hosts;
        hosts
            .iter()
            .map(Host::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let plain = parsed("", &[]).unwrap();
        assert_eq!(plain.user, "me");
        assert_eq!(plain.dbname, "me");
        assert_eq!(plain.sslmode, SslMode::Prefer);
        assert_eq!(plain.application_name, "pghoard");
        assert_eq!(hosts(""), "/var/run/postgresql:5432 /tmp:5432");
        let variables = [
            ("PGHOST", "h"),
            ("PGPORT", "7"),
            ("PGUSER", "u"),
            ("PGPASSWORD", "p"),
        ];
        let from_environment = parsed("user=x", &variables).unwrap();
        assert_eq!(from_environment.user, "x");
        assert_eq!(from_environment.hosts[0].to_string(), "h:7");
        assert_eq!(from_environment.password.unwrap().reveal(), "p");
    }

    #[test]
    fn several_hosts_are_a_list() {
        for (text, expected) in [
            ("host=a,b port=1,2", "a:1 b:2"),
            ("host=a,b port=9", "a:9 b:9"),
            ("host=a,b", "a:5432 b:5432"),
            ("host=/run/x port=5", "/run/x:5"),
            ("hostaddr=10.0.0.1,::1", "10.0.0.1:5432 [::1]:5432"),
            ("host=db hostaddr=10.0.0.1", "10.0.0.1:5432"),
            ("postgres://a:1,b/", "a:1 b:5432"),
        ] {
            assert_eq!(hosts(text), expected, "{text}");
        }
    }

    #[test]
    fn what_we_cannot_obey_is_refused_by_name() {
        for (text, expected) in [
            ("hst=a", "'hst'"),
            ("service=a", "'service'"),
            ("sslcrl=a", "'sslcrl'"),
            ("port=0", "port=0"),
            ("port=http", "port=http"),
            ("host=a,b port=1,2,3", "one length"),
            ("sslmode=maybe", "verify-full"),
            ("sslmode=verify-ca", "sslrootcert"),
            ("sslmode=require sslrootcert=system", "verify-full"),
            ("connect_timeout=soon", "connect_timeout"),
            (
                "target_session_attrs=prefer-standby",
                "target_session_attrs",
            ),
        ] {
            let failure = parsed(text, &[]).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{text}");
            assert!(failure.message.contains(expected), "{failure}");
        }
    }

    #[test]
    fn nodes_of_every_form_are_read() {
        for node in [
            r#""host=h port=1 user=u password=p slot=s""#,
            r#""postgres://u:p@h:1/?slot=s""#,
            r#"{"host": "h", "port": 1, "user": "u", "password": "p", "slot": "s"}"#,
            r#"{"connection_string": "host=h port=1 user=u password=p", "slot": "s"}"#,
        ] {
            let node = serde_json::from_str(node).unwrap();
            let info = Conninfo::from_node(&node, &Defaults::default()).unwrap();
            assert_eq!(info.hosts[0].to_string(), "h:1");
            assert_eq!((info.user.as_str(), info.slot.as_deref()), ("u", Some("s")));
            assert_eq!(info.password.as_ref().unwrap().reveal(), "p");
            assert!(!format!("{info:?}").contains("\"p\""), "{info:?}");
        }
        let wrong = serde_json::json!({"host": ["h"]});
        assert!(Conninfo::from_node(&wrong, &Defaults::default()).is_err());
    }
}
