################################################################################
#
# pghoard-efi
#
################################################################################

# The archive, its version and its digests are those of Buildroot's systemd.
PGHOARD_EFI_VERSION = $(SYSTEMD_VERSION)
PGHOARD_EFI_SITE = $(SYSTEMD_SITE)
PGHOARD_EFI_SOURCE = $(SYSTEMD_SOURCE)
PGHOARD_EFI_DL_SUBDIR = systemd
PGHOARD_EFI_LICENSE = LGPL-2.1+
PGHOARD_EFI_LICENSE_FILES = LICENSE.LGPL2.1
PGHOARD_EFI_DEPENDENCIES = \
	host-gperf \
	host-pkgconf \
	host-python-jinja2 \
	host-python-pyelftools \
	libcap \
	libxcrypt \
	util-linux-libs
PGHOARD_EFI_INSTALL_TARGET = NO
PGHOARD_EFI_INSTALL_IMAGES = YES

# Whatever else systemd could be is left to what it finds, and not built.
PGHOARD_EFI_CONF_OPTS = \
	-Dmode=release \
	-Defi=true \
	-Dbootloader=enabled \
	-Dman=disabled \
	-Dtests=false
PGHOARD_EFI_CONF_ENV = $(HOST_UTF8_LOCALE_ENV)

PGHOARD_EFI_ARCH = $(call qstrip,$(BR2_PACKAGE_PGHOARD_EFI_ARCH))
PGHOARD_EFI_FILES = systemd-boot$(PGHOARD_EFI_ARCH).efi linux$(PGHOARD_EFI_ARCH).efi.stub
PGHOARD_EFI_NINJA = $(TARGET_MAKE_ENV) $(NINJA) $(NINJA_OPTS) -C $(@D)/buildroot-build

# Their folder in the build is another one from one release of systemd to the next.
define PGHOARD_EFI_BUILD_CMDS
	$(foreach file,$(PGHOARD_EFI_FILES),\
		$(PGHOARD_EFI_NINJA) $$($(PGHOARD_EFI_NINJA) -t targets all | \
			sed -n 's,^\(src/boot/\(.*/\)*$(file)\): .*,\1,p')$(sep))
endef

define PGHOARD_EFI_INSTALL_IMAGES_CMDS
	mkdir -p $(BINARIES_DIR)/pghoard
	$(foreach file,$(PGHOARD_EFI_FILES),\
		find $(@D)/buildroot-build/src/boot -name $(file) \
			-exec $(INSTALL) -m 0644 {} $(BINARIES_DIR)/pghoard/$(file) \;$(sep))
endef

$(eval $(meson-package))

# After the infrastructure's own, which looks beside this file. The name has changed once.
PGHOARD_EFI_HASH_FILE = $(SYSTEMD_PKGDIR)/systemd.hash
PGHOARD_EFI_HASH_FILES = $(SYSTEMD_PKGDIR)/systemd.hash
