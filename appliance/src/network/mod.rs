//! Links, addresses, routes and name servers, by rtnetlink and DHCP.
