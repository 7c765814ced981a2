/*
 * Preloaded into the programs of a private Grid Engine cell, which know no address but "all":
 * what they bind, they bind on the loopback interface, and the cell's own ports (named in
 * GRIDNET_CELL_PORTS, separated by colons) are looked for there only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*address_call)(int, const struct sockaddr *, socklen_t);

static int is_cell_port(unsigned port)
{
    const char *rest = getenv("GRIDNET_CELL_PORTS");

    while (rest && *rest) {
        char *end;
        if (strtoul(rest, &end, 10) == port)
            return 1;
        rest = *end == ':' ? end + 1 : NULL;
    }
    return 0;
}

int bind(int socket, const struct sockaddr *address, socklen_t length)
{
    address_call next = (address_call)dlsym(RTLD_NEXT, "bind");
    struct sockaddr_in local;

    if (address && address->sa_family == AF_INET && length >= sizeof local) {
        memcpy(&local, address, sizeof local);
        local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return next(socket, (struct sockaddr *)&local, sizeof local);
    }
    return next(socket, address, length);
}

int connect(int socket, const struct sockaddr *address, socklen_t length)
{
    address_call next = (address_call)dlsym(RTLD_NEXT, "connect");
    struct sockaddr_in local;

    if (address && address->sa_family == AF_INET && length >= sizeof local) {
        memcpy(&local, address, sizeof local);
        if (is_cell_port(ntohs(local.sin_port))) {
            local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            return next(socket, (struct sockaddr *)&local, sizeof local);
        }
    }
    return next(socket, address, length);
}
