//! Which addresses are public: where a redirect may lead to.
//!
//! A registry that millpond was not configured to trust with its network must not make it send requests into that
//! network (SSRF). Pure; the caller applies it to addresses that were resolved already, which a name that resolves
//! first to one address and then to another cannot get around.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 networks that are not public: address, prefix length (IANA "IPv4 Special-Purpose Address Registry", multicast).
const SPECIAL_V4: &[([u8; 4], u32)] = &[
    ([0, 0, 0, 0], 8),       // this network
    ([10, 0, 0, 0], 8),      // private
    ([100, 64, 0, 0], 10),   // carrier-grade NAT
    ([127, 0, 0, 0], 8),     // loopback
    ([169, 254, 0, 0], 16),  // link-local: the metadata services of clouds
    ([172, 16, 0, 0], 12),   // private
    ([192, 0, 0, 0], 24),    // protocol assignments
    ([192, 0, 2, 0], 24),    // documentation
    ([192, 168, 0, 0], 16),  // private
    ([198, 18, 0, 0], 15),   // benchmarks
    ([198, 51, 100, 0], 24), // documentation
    ([203, 0, 113, 0], 24),  // documentation
    ([224, 0, 0, 0], 4),     // multicast
    ([240, 0, 0, 0], 4),     // reserved, broadcast
];

/// IPv6 networks that are not public: first segments, prefix length. Those that hold an IPv4 address lead to it through
/// a gateway that millpond knows nothing of, so all of them are refused (CVE-2026-44430).
const SPECIAL_V6: &[([u16; 4], u32)] = &[
    ([0x64, 0xff9b, 0, 0], 64),  // NAT64, well-known prefix: 64:ff9b::/96
    ([0x64, 0xff9b, 1, 0], 48),  // NAT64, local
    ([0x100, 0, 0, 0], 64),      // discard
    ([0x2001, 0, 0, 0], 32),     // Teredo
    ([0x2001, 0xdb8, 0, 0], 32), // documentation
    ([0x2002, 0, 0, 0], 16),     // 6to4
    ([0xfc00, 0, 0, 0], 7),      // unique local
    ([0xfe80, 0, 0, 0], 10),     // link-local
    ([0xfec0, 0, 0, 0], 10),     // site-local
    ([0xff00, 0, 0, 0], 8),      // multicast
    ([0, 0, 0, 0], 64),          // unspecified, loopback, IPv4-mapped and -compatible, translated
];

/// Whether the address is one of the public internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !SPECIAL_V4.iter().any(|&(net, bits)| is_within(v4, net, bits)),
        IpAddr::V6(v6) => !SPECIAL_V6.iter().any(|&(net, bits)| starts_with(v6, net, bits)),
    }
}

fn is_within(address: Ipv4Addr, net: [u8; 4], bits: u32) -> bool {
    (address.to_bits() ^ u32::from_be_bytes(net)) >> (32 - bits) == 0
}

fn starts_with(address: Ipv6Addr, net: [u16; 4], bits: u32) -> bool {
    let first_half = |segments: &[u16]| segments.iter().fold(0_u64, |sum, &s| sum << 16 | u64::from(s));
    (first_half(&address.segments()[..4]) ^ first_half(&net)) >> (64 - bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for (text, public) in [
            ("1.1.1.1", true),
            ("9.255.255.255", true),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("11.0.0.0", true),
            ("100.63.255.255", true),
            ("100.64.0.0", false),
            ("100.127.255.255", false),
            ("100.128.0.0", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("172.15.255.255", true),
            ("172.16.0.0", false),
            ("172.31.255.255", false),
            ("172.32.0.0", true),
            ("192.0.0.8", false),
            ("192.167.255.255", true),
            ("192.168.1.1", false),
            ("198.17.255.255", true),
            ("198.18.0.1", false),
            ("198.19.255.255", false),
            ("223.255.255.255", true),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700::1111", true),
            ("2a00:1450:4001::1", true),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", false),
            ("::7f00:1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::808:808", false),
            ("64:ff9b:1::1", false),
            ("64:ff9b:2::1", true),
            ("100::1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2001:4860:4860::8888", true),
            ("2002:7f00:1::", false),
            ("fbff::1", true),
            ("fc00::1", false),
            ("fdff::1", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(text.parse().expect("an address")), public, "{text}");
        }
    }
}
