//! Proving who we are: cleartext, md5, SCRAM-SHA-256, and over TLS SCRAM bound to the server's
//! certificate (SCRAM-SHA-256-PLUS) whenever the server offers it.

use std::time::Instant;

use fallible_iterator::FallibleIterator;
use machine::Class;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::connection::{Connection, Mode};
use super::conninfo::{ChannelBinding, Conninfo, Host};
use super::fault::{Answer, Fault, SqlState};
use super::passfile::{Lookup, Password};

pub(super) async fn authenticate(
    connection: &mut Connection,
    info: &Conninfo,
    host: &Host,
    end_point: Option<Vec<u8>>,
    deadline: Instant,
) -> Answer<()> {
    let mut login = Login {
        info,
        host,
        end_point,
        lookup: None,
        scram: Scram::Unused,
    };
    loop {
        let frame = connection.must(deadline).await?;
        match frame.tag {
            b'R' => {}
            b'v' => continue,
            b'E' => return Err(login.explain(connection.refusal(frame))),
            _ => return Err(connection.violation("a request for authentication")),
        }
        let message = connection.message(frame)?;
        if let Message::AuthenticationOk = message {
            return login.admitted();
        }
        login.answer(connection, message)?;
        connection.flush(deadline).await?;
    }
}

struct Login<'a> {
    info: &'a Conninfo,
    host: &'a Host,
    end_point: Option<Vec<u8>>,
    /// Looked for when first asked for: a server that trusts us never makes us open a file.
    lookup: Option<Lookup>,
    scram: Scram,
}

enum Scram {
    Unused,
    Running {
        exchange: Box<ScramSha256>,
        bound: bool,
    },
    /// The server has proved that it knows the password, too.
    Proved {
        bound: bool,
    },
}

impl Login<'_> {
    fn answer(&mut self, connection: &mut Connection, message: Message) -> Answer<()> {
        let user = self.info.user.as_bytes();
        match message {
            Message::AuthenticationCleartextPassword => {
                let password = self.password(connection.mode())?;
                let bytes = password.reveal().as_bytes();
                connection.write(|output| frontend::password_message(bytes, output))
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password(connection.mode())?;
                let hash = md5_hash(user, password.reveal().as_bytes(), body.salt());
                connection.write(|output| frontend::password_message(hash.as_bytes(), output))
            }
            Message::AuthenticationSasl(body) => self.begin(connection, &body),
            Message::AuthenticationSaslContinue(body) => {
                let Scram::Running { exchange, .. } = &mut self.scram else {
                    return Err(connection.violation("SCRAM in its order"));
                };
                exchange
                    .update(body.data())
                    .map_err(|e| refused(self.host, &e.to_string()))?;
                connection.write(|output| frontend::sasl_response(exchange.message(), output))
            }
            Message::AuthenticationSaslFinal(body) => {
                let Scram::Running { exchange, bound } = &mut self.scram else {
                    return Err(connection.violation("SCRAM in its order"));
                };
                exchange
                    .finish(body.data())
                    .map_err(|e| refused(self.host, &e.to_string()))?;
                self.scram = Scram::Proved { bound: *bound };
                Ok(())
            }
            _ => Err(Fault::new(
                Class::Unsupported,
                format!(
                    "postgres at {}: asks user \"{}\" for a kind of login we do not have",
                    self.host, self.info.user
                ),
            )
            .hint("allow scram-sha-256, md5, password, cert, peer or trust in pg_hba.conf")),
        }
    }

    fn begin(&mut self, connection: &mut Connection, body: &AuthenticationSaslBody) -> Answer<()> {
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Ok(Some(mechanism)) = mechanisms.next() {
            plain |= mechanism == SCRAM_SHA_256;
            plus |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let wanted = self.info.channel_binding != ChannelBinding::Disable;
        let end_point = self.end_point.take().filter(|_| wanted);
        let (name, binding) = match end_point {
            Some(hash) if plus => (
                SCRAM_SHA_256_PLUS,
                sasl::ChannelBinding::tls_server_end_point(hash),
            ),
            // Tells a server that does offer it that somebody took its offer away.
            Some(_) if plain => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None if plain => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
            _ => return Err(refused(self.host, "no SCRAM mechanism that we have")),
        };
        let bound = name == SCRAM_SHA_256_PLUS;
        self.permit(bound)?;
        let password = self.password(connection.mode())?;
        let exchange = ScramSha256::new(password.reveal().as_bytes(), binding);
        connection
            .write(|output| frontend::sasl_initial_response(name, exchange.message(), output))?;
        self.scram = Scram::Running {
            exchange: Box::new(exchange),
            bound,
        };
        Ok(())
    }

    fn permit(&self, bound: bool) -> Answer<()> {
        match self.info.channel_binding {
            ChannelBinding::Require if !bound => Err(refused(
                self.host,
                "channel_binding=require, and the server's login does not bind the channel",
            )),
            ChannelBinding::Require | ChannelBinding::Prefer | ChannelBinding::Disable => Ok(()),
        }
    }

    fn admitted(&self) -> Answer<()> {
        match self.scram {
            Scram::Unused => self.permit(false),
            Scram::Proved { bound } => self.permit(bound),
            Scram::Running { .. } => Err(refused(
                self.host,
                "the server let us in without proving that it knows the password",
            )),
        }
    }

    fn password(&mut self, mode: Mode) -> Answer<Password> {
        let (info, host) = (self.info, self.host);
        let lookup = self.lookup.get_or_insert_with(|| {
            // Password files name `replication` as the database of a walsender.
            match mode {
                Mode::Physical => info.password_for(host, &["replication", &info.dbname]),
                Mode::Plain => info.password_for(host, &[&info.dbname]),
            }
        });
        let missing = |hint: &str| {
            let message = format!(
                "postgres at {host}: asks for the password of user \"{}\", and there is none",
                info.user
            );
            Fault::new(Class::Auth, message).hint(hint)
        };
        match lookup {
            Lookup::Found(password) => Ok(password.clone()),
            Lookup::Ignored(why) => Err(missing(why)),
            Lookup::Absent => Err(missing("give password in the node, or a line in ~/.pgpass")),
        }
    }

    /// The server's refusal, in a line that names user and host.
    fn explain(&self, mut fault: Fault) -> Fault {
        if fault.is(SqlState::WRONG_PASSWORD) {
            fault.failure.message = format!(
                "postgres at {}: the server refuses the password of user \"{}\"",
                self.host, self.info.user
            );
            let source = match (&self.info.password, &self.info.passfile) {
                (Some(_), _) | (_, None) => "the password in the node".to_owned(),
                (None, Some(path)) => path.display().to_string(),
            };
            fault = fault.hint(format!("check {source}"));
        }
        fault
    }
}

fn refused(host: &Host, why: &str) -> Fault {
    Fault::new(Class::Auth, format!("postgres at {host}: {why}"))
}
