################################################################################
#
# pghoard
#
################################################################################

# The sources are the repository that this tree lies in.
PGHOARD_VERSION = 0.1.0
PGHOARD_SITE = $(realpath $(BR2_EXTERNAL_PGHOARD_APPLIANCE_PATH)/..)
PGHOARD_SITE_METHOD = local
PGHOARD_LICENSE = Apache-2.0
PGHOARD_LICENSE_FILES = LICENSE
PGHOARD_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = --exclude /target --exclude /output
HOST_PGHOARD_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = $(PGHOARD_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS)
PGHOARD_DEPENDENCIES = e2fsprogs host-e2fsprogs host-pghoard linux pghoard-efi
PGHOARD_INSTALL_TARGET = NO
PGHOARD_INSTALL_IMAGES = YES

# The program, its name and what is beside it are what firmware-image asks for.
PGHOARD_INPUTS_DIR = $(BINARIES_DIR)/pghoard

# There is no loader of shared libraries in the image.
PGHOARD_RUST_TARGET = $(call UPPERCASE,$(RUSTC_TARGET_NAME))
PGHOARD_CARGO_ENV = CARGO_TARGET_$(PGHOARD_RUST_TARGET)_RUSTFLAGS="-C target-feature=+crt-static"
PGHOARD_CARGO_BUILD_OPTS = --package pghoard-appliance
HOST_PGHOARD_CARGO_BUILD_OPTS = --package firmware-image

# Buildroot vendors crates when it downloads an archive. Of sources that are there already they are
# fetched here, by the digests of Cargo.lock, and everything after it is offline.
define PGHOARD_CONFIGURE_CMDS
	cd $(@D) && $(TARGET_MAKE_ENV) $(PKG_CARGO_ENV) cargo fetch --locked
endef

define HOST_PGHOARD_CONFIGURE_CMDS
	cd $(@D) && $(HOST_MAKE_ENV) $(HOST_PKG_CARGO_ENV) cargo fetch --locked
endef

define HOST_PGHOARD_INSTALL_CMDS
	$(INSTALL) -D -m 0755 $(@D)/target/release/firmware-image $(HOST_DIR)/bin/firmware-image
endef

define PGHOARD_INSTALL_IMAGES_CMDS
	$(INSTALL) -D -m 0755 $(@D)/target/$(RUSTC_TARGET_NAME)/release/pghoard-appliance \
		$(PGHOARD_INPUTS_DIR)/program
endef

# e2fsprogs as Buildroot builds it, and once more without shared libraries.
define PGHOARD_E2FSCK
	$(TARGET_MAKE_ENV) $(MAKE1) -C $(@D)/e2fsck e2fsck.static
	$(INSTALL) -D -m 0755 $(@D)/e2fsck/e2fsck.static $(PGHOARD_INPUTS_DIR)/e2fsck
	$(STRIPCMD) $(PGHOARD_INPUTS_DIR)/e2fsck
endef

# What the image is made of beside the crates, which firmware-image lists itself.
# $(1): name, $(2): prefix of the package's variables
define PGHOARD_PACKAGE
	printf '{"name": "%s", "version": "%s", "licence": "%s", "sha256": "%s"}' '$(1)' \
		'$($(2)_VERSION)' '$(strip $($(2)_LICENSE))' \
		"$$(sha256sum $($(2)_DL_DIR)/$($(2)_SOURCE) | cut -d ' ' -f 1)"
endef

define PGHOARD_PACKAGES
	mkdir -p $(PGHOARD_INPUTS_DIR)
	{ printf '['; $(call PGHOARD_PACKAGE,linux,LINUX); printf ',\n'; \
		$(call PGHOARD_PACKAGE,systemd-boot,PGHOARD_EFI); printf ',\n'; \
		$(call PGHOARD_PACKAGE,e2fsprogs,E2FSPROGS); printf ']\n'; \
	} >$(PGHOARD_INPUTS_DIR)/packages.json
	echo '$(BR_CARGO_HOME)' >$(PGHOARD_INPUTS_DIR)/cargo-home
endef

ifeq ($(BR2_PACKAGE_PGHOARD),y)
E2FSPROGS_POST_INSTALL_TARGET_HOOKS += PGHOARD_E2FSCK
PGHOARD_TARGET_FINALIZE_HOOKS += PGHOARD_PACKAGES
endif

$(eval $(cargo-package))
$(eval $(host-cargo-package))
