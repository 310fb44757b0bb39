//! One EFI program out of a stub, a kernel, an initramfs and its command line: a unified kernel
//! image, as the UAPI group's specification has it. Sections are appended to the stub; nothing of
//! it moves, so the result is a function of the inputs alone.

use crate::failure::{Outcome, failure};

/// A section of the image, by the names that systemd's stub looks for.
pub struct Section<'a> {
    pub name: &'static str,
    pub bytes: &'a [u8],
}

/// Offsets of the PE format (Microsoft's "PE Format", version 11).
const SIGNATURE_AT: usize = 0x3c;
const FILE_HEADER: usize = 20;
const SECTION_HEADER: usize = 40;
/// Within the optional header, the same for 32 and 64 bits.
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const IMAGE_SIZE: usize = 56;
const HEADERS_SIZE: usize = 60;
/// Initialized data that may be read.
const READABLE_DATA: u32 = 0x4000_0040;

pub fn join(stub: &[u8], sections: &[Section<'_>]) -> Outcome<Vec<u8>> {
    let mut image = Image::parse(stub)?;
    for section in sections {
        image.append(section)?;
    }
    Ok(image.bytes)
}

struct Image {
    bytes: Vec<u8>,
    /// Where the file header, the optional header and the section table begin.
    file_header: usize,
    optional: usize,
    table: usize,
    count: usize,
    section_alignment: usize,
    file_alignment: usize,
    /// The end of the headers, as far as they may grow.
    headers_size: usize,
    /// Where the last section ends in memory.
    end: usize,
}

impl Image {
    fn parse(stub: &[u8]) -> Outcome<Image> {
        let bytes = stub.to_vec();
        let signature = u32_at(&bytes, SIGNATURE_AT)?;
        if bytes.get(signature..signature.saturating_add(4)) != Some(b"PE\0\0") {
            return Err(failure("the stub is no EFI program (PE)"));
        }
        let file_header = signature.saturating_add(4);
        let optional = file_header.saturating_add(FILE_HEADER);
        let count = u16_at(&bytes, file_header.saturating_add(2))?;
        let table = optional.saturating_add(u16_at(&bytes, file_header.saturating_add(16))?);
        let mut end = 0;
        for number in 0..count {
            let header = table.saturating_add(number.saturating_mul(SECTION_HEADER));
            let size = u32_at(&bytes, header.saturating_add(8))?;
            let address = u32_at(&bytes, header.saturating_add(12))?;
            end = end.max(address.saturating_add(size));
        }
        Ok(Image {
            section_alignment: u32_at(&bytes, optional.saturating_add(SECTION_ALIGNMENT))?.max(1),
            file_alignment: u32_at(&bytes, optional.saturating_add(FILE_ALIGNMENT))?.max(1),
            headers_size: u32_at(&bytes, optional.saturating_add(HEADERS_SIZE))?,
            bytes,
            file_header,
            optional,
            table,
            count,
            end,
        })
    }

    fn append(&mut self, section: &Section<'_>) -> Outcome<()> {
        let header = self
            .table
            .saturating_add(self.count.saturating_mul(SECTION_HEADER));
        if header.saturating_add(SECTION_HEADER) > self.headers_size {
            return Err(failure("the stub has no room for another section"));
        }
        let start = self.bytes.len().next_multiple_of(self.file_alignment);
        let stored = section.bytes.len().next_multiple_of(self.file_alignment);
        let address = self.end.next_multiple_of(self.section_alignment);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(section.bytes);
        self.bytes.resize(start.saturating_add(stored), 0);
        self.end = address.saturating_add(section.bytes.len());
        self.count = self.count.saturating_add(1);

        let mut name = [0; 8];
        for (to, from) in name.iter_mut().zip(section.name.bytes()) {
            *to = from;
        }
        self.put(header, &name)?;
        self.put_u32(header.saturating_add(8), section.bytes.len())?;
        self.put_u32(header.saturating_add(12), address)?;
        self.put_u32(header.saturating_add(16), stored)?;
        self.put_u32(header.saturating_add(20), start)?;
        self.put(header.saturating_add(36), &READABLE_DATA.to_le_bytes())?;
        let count = u16::try_from(self.count).map_err(|_| failure("too many sections"))?;
        self.put(self.file_header.saturating_add(2), &count.to_le_bytes())?;
        let size = self.end.next_multiple_of(self.section_alignment);
        self.put_u32(self.optional.saturating_add(IMAGE_SIZE), size)
    }

    fn put_u32(&mut self, at: usize, value: usize) -> Outcome<()> {
        let value = u32::try_from(value).map_err(|_| failure("the image is larger than 4 GiB"))?;
        self.put(at, &value.to_le_bytes())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Outcome<()> {
        let place = self.bytes.get_mut(at..at.saturating_add(bytes.len()));
        place.ok_or_else(cut)?.copy_from_slice(bytes);
        Ok(())
    }
}

fn cut() -> crate::failure::Failure {
    failure("the stub is cut off")
}

fn u16_at(bytes: &[u8], at: usize) -> Outcome<usize> {
    let found = bytes.get(at..at.saturating_add(2)).ok_or_else(cut)?;
    Ok(usize::from(u16::from_le_bytes(
        found.try_into().map_err(|_| cut())?,
    )))
}

fn u32_at(bytes: &[u8], at: usize) -> Outcome<usize> {
    let found = bytes.get(at..at.saturating_add(4)).ok_or_else(cut)?;
    let value = u32::from_le_bytes(found.try_into().map_err(|_| cut())?);
    usize::try_from(value).map_err(|_| cut())
}
