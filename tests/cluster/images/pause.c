/* The first process of a pod: it keeps the namespaces, buries the dead, and ends when it is told to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void bury(int signal) {
    (void)signal;
    while (waitpid(-1, 0, WNOHANG) > 0) {
    }
}

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    signal(SIGCHLD, bury);
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    for (;;) {
        pause();
    }
}
