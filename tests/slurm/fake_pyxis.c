/* A SPANK plugin for the test cluster: srun accepts the container options of NVIDIA's pyxis, and the task runs without a
 * container. The options appear in the task's environment as FAKE_PYXIS_IMAGE, FAKE_PYXIS_MOUNTS ... A mount with a missing
 * source fails, as in pyxis, and the task starts in --container-workdir. */
#include <ctype.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(fake_pyxis, 1)

enum { IMAGE, MOUNTS, WORKDIR, ENV, NAME, MOUNT_HOME, NO_MOUNT_HOME, WRITABLE, OPTIONS };

static const struct { const char *name, *argument; } known[OPTIONS] = {
    [IMAGE] = {"container-image", "IMAGE"},
    [MOUNTS] = {"container-mounts", "SRC:DST[:FLAGS][,...]"},
    [WORKDIR] = {"container-workdir", "PATH"},
    [ENV] = {"container-env", "NAME[,...]"},
    [NAME] = {"container-name", "NAME"},
    [MOUNT_HOME] = {"container-mount-home", NULL},
    [NO_MOUNT_HOME] = {"no-container-mount-home", NULL},
    [WRITABLE] = {"container-writable", NULL},
};
static char *given[OPTIONS];

static int remember(int option, const char *argument, int remote)
{
    (void)remote;
    given[option] = strdup(argument ? argument : "1");
    return ESPANK_SUCCESS;
}

int slurm_spank_init(spank_t spank, int count, char **words)
{
    (void)count;
    (void)words;
    for (int i = 0; i < OPTIONS; i++) {
        struct spank_option option = {(char *)known[i].name, (char *)known[i].argument,
            "[fake pyxis] accepted; no container is started", known[i].argument != NULL, i, remember};
        if (spank_option_register(spank, &option) != ESPANK_SUCCESS)
            return ESPANK_ERROR;
    }
    return ESPANK_SUCCESS;
}

static int check_mounts(const char *list)
{
    char *copy = strdup(list), *rest = NULL;
    for (char *mount = strtok_r(copy, ",", &rest); mount; mount = strtok_r(NULL, ",", &rest)) {
        mount[strcspn(mount, ":")] = '\0';
        if (access(mount, F_OK) != 0) {
            slurm_error("fake pyxis: no such mount source: %s", mount);
            return ESPANK_ERROR;
        }
    }
    free(copy);
    return ESPANK_SUCCESS;
}

int slurm_spank_task_init(spank_t spank, int count, char **words)
{
    (void)count;
    (void)words;
    if (!given[IMAGE])
        return ESPANK_SUCCESS;
    for (int i = 0; i < OPTIONS; i++) {
        if (!given[i])
            continue;
        const char *name = strncmp(known[i].name, "container-", 10) == 0 ? known[i].name + 10 : known[i].name;
        char key[64];
        snprintf(key, sizeof key, "FAKE_PYXIS_%s", name);
        for (char *c = key; *c; c++)
            *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        spank_setenv(spank, key, given[i], 1);
    }
    if (given[MOUNTS] && check_mounts(given[MOUNTS]) != ESPANK_SUCCESS)
        return ESPANK_ERROR;
    if (given[WORKDIR] && chdir(given[WORKDIR]) != 0) {
        slurm_error("fake pyxis: no such working folder: %s", given[WORKDIR]);
        return ESPANK_ERROR;
    }
    return ESPANK_SUCCESS;
}
