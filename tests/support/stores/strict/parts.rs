//! Uploads in parts.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use md5::Md5;
use sha2::{Digest, Sha256};

use super::query::{Query, elements, escaped};
use super::signature::text;
use super::{Answer, Object, PART_MIN_BYTES, State, XML, kept, refuse};
use crate::support::http::{Request, respond};

pub(super) struct Upload {
    bucket: String,
    key: String,
    begun: String,
    headers: Vec<(String, String)>,
    /// Then every part has to come with its checksum, and be named with it at the end.
    with_checksums: bool,
    parts: BTreeMap<u32, Bytes>,
}

impl State {
    pub(super) fn begin(&mut self, bucket: &str, key: &str, request: &Request) -> Answer {
        let algorithm = text(request, "x-amz-checksum-algorithm");
        if !["", "SHA256"].contains(&algorithm.as_str()) {
            return refuse(501, "NotImplemented");
        }
        let id = format!("{:032x}", fastrand::u128(..));
        let upload = Upload {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            begun: jiff::Timestamp::now().to_string(),
            headers: kept(request),
            with_checksums: !algorithm.is_empty(),
            parts: BTreeMap::new(),
        };
        self.uploads.insert(id.clone(), upload);
        let body = format!(
            "<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key>\
             <UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
            escaped(key)
        );
        Ok(respond(200, &[XML], body))
    }

    pub(super) fn part(&mut self, query: &Query, request: &Request) -> Answer {
        let Some(upload) = self.uploads.get_mut(&query.get("uploadId")) else {
            return refuse(404, "NoSuchUpload");
        };
        let Ok(number @ 1..=10_000) = query.get("partNumber").parse() else {
            return refuse(400, "InvalidArgument");
        };
        let checksum = text(request, "x-amz-checksum-sha256");
        if upload.with_checksums && checksum.is_empty() {
            return refuse(400, "InvalidRequest");
        }
        let body = request.body().clone();
        let tag = format!("\"{}\"", hex::encode(Md5::digest(&body)));
        upload.parts.insert(number, body);
        let mut headers = vec![("ETag", tag.as_str())];
        if !checksum.is_empty() {
            headers.push(("x-amz-checksum-sha256", &checksum));
        }
        Ok(respond(200, &headers, ""))
    }

    /// Every part by number, ETag and, where they were promised, checksum.
    pub(super) fn complete(
        &mut self,
        bucket: &str,
        key: &str,
        query: &Query,
        request: &Request,
    ) -> Answer {
        let id = query.get("uploadId");
        let Some(upload) = self.uploads.get(&id) else {
            return refuse(404, "NoSuchUpload");
        };
        if (upload.bucket.as_str(), upload.key.as_str()) != (bucket, key) {
            return refuse(404, "NoSuchUpload");
        }
        let xml = String::from_utf8_lossy(request.body()).into_owned();
        let numbers = elements(&xml, "PartNumber");
        let (tags, sums) = (elements(&xml, "ETag"), elements(&xml, "ChecksumSHA256"));
        if numbers.is_empty() || numbers.len() != tags.len() {
            return refuse(400, "MalformedXML");
        }
        let (mut body, mut md5s, mut sha256s) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = 0;
        for (index, number) in numbers.iter().enumerate() {
            let number = number.parse().unwrap_or(0);
            if number <= before {
                return refuse(400, "InvalidPartOrder");
            }
            before = number;
            let Some(part) = upload.parts.get(&number) else {
                return refuse(400, "InvalidPart");
            };
            let (md5, sha256) = (Md5::digest(part), Sha256::digest(part));
            let named = sums.get(index).map(String::as_str);
            if tags[index].trim_matches('"') != hex::encode(md5)
                || upload.with_checksums && named != Some(&STANDARD.encode(sha256))
            {
                return refuse(400, "InvalidPart");
            }
            if part.len() < PART_MIN_BYTES && index + 1 < numbers.len() {
                return refuse(400, "EntityTooSmall");
            }
            body.extend_from_slice(part);
            md5s.extend_from_slice(&md5);
            sha256s.extend_from_slice(&sha256);
        }
        let count = numbers.len();
        let etag = format!("{}-{count}", hex::encode(Md5::digest(&md5s)));
        let sum = format!("{}-{count}", STANDARD.encode(Sha256::digest(&sha256s)));
        let object = Object {
            headers: upload.headers.clone(),
            checksum: upload.with_checksums.then_some(sum),
            ..Object::new(body.into(), etag)
        };
        // The upload stays where the name is taken.
        self.may_create(bucket, key, request)?;
        let answer = format!(
            "<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key>\
             <ETag>&quot;{}&quot;</ETag></CompleteMultipartUploadResult>",
            escaped(key),
            object.etag
        );
        self.uploads.remove(&id);
        self.objects(bucket).insert(key.to_owned(), object);
        Ok(respond(200, &[XML], answer))
    }

    pub(super) fn abort(&mut self, query: &Query) -> Answer {
        match self.uploads.remove(&query.get("uploadId")) {
            Some(_) => Ok(respond(204, &[], "")),
            None => refuse(404, "NoSuchUpload"),
        }
    }

    pub(super) fn list_uploads(&mut self, bucket: &str, query: &Query) -> Answer {
        let prefix = query.get("prefix");
        let here = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.bucket == bucket && upload.key.starts_with(&prefix));
        let entries: String = here
            .map(|(id, upload)| {
                let (key, begun) = (escaped(&upload.key), &upload.begun);
                format!(
                    "<Upload><Key>{key}</Key><UploadId>{id}</UploadId>\
                     <Initiated>{begun}</Initiated></Upload>"
                )
            })
            .collect();
        let body = format!(
            "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{entries}\
             </ListMultipartUploadsResult>"
        );
        Ok(respond(200, &[XML], body))
    }
}
