//! Credentials that somebody else hands out: asked for anew where a store refuses them.
//!
//! The library asks again before one ends. One that was withdrawn or replaced before its time, in
//! a file as at a metadata server, is known by the refusal alone.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::client::HttpRequest;
use smol::lock::Mutex;

use super::told;
use crate::failure::Outcome;
use crate::store::wire::Renew;

type Provider<T> = Arc<dyn CredentialProvider<Credential = T>>;
type Source<T> = Box<dyn Fn() -> Outcome<Provider<T>> + Send + Sync>;
type Sign<T> = Box<dyn Fn(&T, &mut HttpRequest) -> Outcome<()> + Send + Sync>;

pub(in crate::store) struct Logins<T> {
    /// Looks for credentials as at the start.
    source: Source<T>,
    /// Replaces the login of a request.
    sign: Sign<T>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    provider: Provider<T>,
    since: Instant,
}

impl<T> Logins<T> {
    /// No request is made.
    pub fn new(
        source: impl Fn() -> Outcome<Provider<T>> + Send + Sync + 'static,
        sign: impl Fn(&T, &mut HttpRequest) -> Outcome<()> + Send + Sync + 'static,
    ) -> Outcome<Logins<T>> {
        let provider = source()?;
        Ok(Logins {
            source: Box::new(source),
            sign: Box::new(sign),
            current: Mutex::new(Current {
                provider,
                since: Instant::now(),
            }),
        })
    }
}

#[async_trait]
impl<T: Send + Sync> CredentialProvider for Logins<T> {
    type Credential = T;

    async fn get_credential(&self) -> object_store::Result<Arc<T>> {
        let provider = Arc::clone(&self.current.lock().await.provider);
        provider.get_credential().await
    }
}

#[async_trait]
impl<T: Send + Sync> Renew for Logins<T> {
    async fn renew(&self, request: &mut HttpRequest, signed: Instant) -> Outcome<()> {
        let mut current = self.current.lock().await;
        // Of many that are refused at a time the first renews for all.
        let credential = if current.since > signed {
            current.provider.get_credential().await
        } else {
            let provider = (self.source)()?;
            let credential = provider.get_credential().await;
            if credential.is_ok() {
                *current = Current {
                    provider,
                    since: Instant::now(),
                };
            }
            credential
        };
        drop(current);
        let credential = credential.map_err(|e| told(&e))?;
        (self.sign)(&credential, request)
    }
}

/// Without any of them.
impl<T> fmt::Debug for Logins<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logins")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
    use machine::Class;
    use object_store::StaticCredentialProvider;

    use super::*;
    use crate::failure::Failure;
    use crate::store::cloud::own;
    use crate::store::wire::run;

    /// Hands out numbers, but not this one.
    fn numbered(fails: u32) -> Logins<u32> {
        let next = AtomicU32::new(0);
        let source = move || {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number == fails {
                return Err(Failure::new(Class::Network, "nobody there"));
            }
            let provider: Provider<u32> = Arc::new(StaticCredentialProvider::new(number));
            Ok(provider)
        };
        let sign = |number: &u32, request: &mut HttpRequest| {
            let value = HeaderValue::from(*number);
            request.headers_mut().insert(AUTHORIZATION, value);
            Ok(())
        };
        Logins::new(source, sign).unwrap()
    }

    fn renewed(logins: &Logins<u32>, signed: Instant) -> Outcome<String> {
        let (empty, headers) = (String::new(), HeaderMap::new());
        let url = "http://127.0.0.1/";
        let mut request = own::request(hyper::Method::GET, url, headers, empty.into())?;
        run(logins.renew(&mut request, signed))?;
        let login = request.headers().get(AUTHORIZATION).unwrap();
        Ok(login.to_str().unwrap().to_owned())
    }

    #[test]
    fn of_many_that_are_refused_at_a_time_the_first_renews_for_all() {
        let logins = numbered(2);
        assert_eq!(*run(logins.get_credential()).unwrap(), 0);
        let signed = Instant::now();
        for _ in 0..3 {
            assert_eq!(renewed(&logins, signed).unwrap(), "1");
        }
        assert_eq!(*run(logins.get_credential()).unwrap(), 1);
        // What cannot be had leaves what there was.
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(renewed(&logins, later).unwrap_err().class, Class::Network);
        assert_eq!(*run(logins.get_credential()).unwrap(), 1);
        assert_eq!(renewed(&logins, later).unwrap(), "3");
    }
}
