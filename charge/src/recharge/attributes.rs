//! Extended attributes: a copy that lacks them is not the same file.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most that the kernel lists, and the largest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LARGEST: usize = 64 << 10;

/// Gives `to` every extended attribute of `from`.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer, so only the size is asked for.
    match unsafe { libc::flistxattr(from.as_raw_fd(), std::ptr::null_mut(), 0) } {
        0 => return Ok(()),
        -1 => {
            let error = io::Error::last_os_error();
            let none = error.raw_os_error() == Some(libc::EOPNOTSUPP);
            return if none { Ok(()) } else { Err(error) };
        }
        _ => {}
    }
    let mut names = vec![0u8; LARGEST];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let length =
        unsafe { libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    let mut value = vec![0u8; LARGEST];
    let mut rest = names.as_slice();
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        // SAFETY: a string with its end, and a buffer with its length.
        let length = unsafe {
            libc::fgetxattr(
                from.as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: as above; the kernel reads `length` bytes that it wrote a moment ago.
        let set = unsafe {
            libc::fsetxattr(
                to.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                length,
                0,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        rest = rest.get(name.count_bytes() + 1..).unwrap_or_default();
    }
    Ok(())
}
